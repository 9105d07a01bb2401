//! A client that says exactly what a test wants, also what no client should.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cdp_nbd::proto::{self, Cursor, RequestHeader};

/// What a reply chunk carried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub cookie: u64,
    /// Chunk type; `None` for a simple reply.
    pub kind: Option<u16>,
    pub done: bool,
    pub errno: u32,
    pub payload: Vec<u8>,
    /// The request's offset, in extended replies.
    pub offset: Option<u64>,
}

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
    pub extended: bool,
    next_cookie: u64,
}

impl Client {
    /// Connects and answers the greeting.
    pub fn connect(path: &Path) -> Client {
        Client::over(UnixStream::connect(path).expect("the server listens"))
    }

    pub fn over(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Client { stream, structured: false, extended: false, next_cookie: 1 };
        let greeting = client.take(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(&greeting[16..], [0, 3]);
        client.put(&3u32.to_be_bytes());
        client
    }

    /// Ready for requests to this export, with simple replies.
    pub fn simple(path: &Path, name: &str) -> Client {
        let mut client = Client::connect(path);
        client.go(name).expect("GO succeeds");
        client
    }

    /// Ready for requests to this export, with structured replies and block status.
    pub fn structured(path: &Path, name: &str) -> Client {
        let mut client = Client::connect(path);
        assert_eq!(client.option(proto::option::STRUCTURED_REPLY, &[]).last().unwrap().0, proto::reply::ACK);
        client.structured = true;
        client.set_context(name);
        client.go(name).expect("GO succeeds");
        client
    }

    /// Ready for requests to this export, with extended headers and block status.
    pub fn extended(path: &Path, name: &str) -> Client {
        let mut client = Client::connect(path);
        assert_eq!(client.option(proto::option::EXTENDED_HEADERS, &[]).last().unwrap().0, proto::reply::ACK);
        client.extended = true;
        client.set_context(name);
        client.go(name).expect("GO succeeds");
        client
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes bytes");
    }

    pub fn take(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.stream.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    /// Whether the server has closed the connection; what it still sent is thrown away.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut message = b"IHAVEOPT".to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.put(&message);
    }

    /// One reply to an option: type and data.
    pub fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let header = self.take(20);
        let mut cursor = Cursor(&header);
        assert_eq!(cursor.u64(), Some(proto::OPTION_REPLY_MAGIC));
        assert_eq!(cursor.u32(), Some(option));
        let kind = cursor.u32().unwrap();
        let len = cursor.u32().unwrap();
        (kind, self.take(len as usize))
    }

    /// All replies to an option.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option);
            let last = reply.0 == proto::reply::ACK || reply.0 >> 31 == 1;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    pub fn set_context(&mut self, name: &str) -> Vec<(u32, Vec<u8>)> {
        self.option(proto::option::SET_META_CONTEXT, &meta_data(name, &["base:allocation"]))
    }

    /// Size and flags, or the error.
    pub fn go(&mut self, name: &str) -> Result<(u64, u16), u32> {
        let replies = self.option(proto::option::GO, &info_data(name, &[]));
        let (last, _) = replies.last().unwrap();
        if *last != proto::reply::ACK {
            return Err(*last);
        }
        let export = replies.iter().find(|(kind, data)| *kind == proto::reply::INFO && data[..2] == [0, 0]);
        let mut cursor = Cursor(&export.expect("INFO_EXPORT comes").1[2..]);
        Ok((cursor.u64().unwrap(), cursor.u16().unwrap()))
    }

    /// Sends a request with a fresh cookie, which is returned.
    pub fn request(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) -> u64 {
        let (cookie, bytes) = self.encode(flags, command, offset, len, payload);
        self.put(&bytes);
        cookie
    }

    pub fn encode(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> (u64, Vec<u8>) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = RequestHeader { flags, command, cookie, offset, len }.encode(self.extended);
        bytes.extend(payload);
        (cookie, bytes)
    }

    /// The next reply or chunk; `data` is what a simple reply to a read carries.
    pub fn reply(&mut self, data: usize) -> Reply {
        let magic = self.take(4);
        let magic = Cursor(&magic).u32().unwrap();
        if magic == proto::SIMPLE_REPLY_MAGIC {
            assert!(!self.extended, "simple replies are forbidden with extended headers");
            let header = self.take(12);
            let mut cursor = Cursor(&header);
            let errno = cursor.u32().unwrap();
            let cookie = cursor.u64().unwrap();
            let payload = self.take(if errno == 0 { data } else { 0 });
            return Reply { cookie, kind: None, done: true, errno, payload, offset: None };
        }
        let header = self.take(if self.extended { 28 } else { 16 });
        let mut cursor = Cursor(&header);
        let flags = cursor.u16().unwrap();
        let kind = cursor.u16().unwrap();
        let cookie = cursor.u64().unwrap();
        let (offset, len) = match self.extended {
            true => {
                assert_eq!(magic, proto::EXTENDED_REPLY_MAGIC);
                (cursor.u64(), cursor.u64().unwrap())
            }
            false => {
                assert_eq!(magic, proto::STRUCTURED_REPLY_MAGIC);
                assert!(self.structured, "chunks were agreed on");
                (None, u64::from(cursor.u32().unwrap()))
            }
        };
        let payload = self.take(len as usize);
        let errno = if kind >> 15 == 1 { Cursor(&payload).u32().unwrap() } else { 0 };
        Reply { cookie, kind: Some(kind), done: flags & proto::CHUNK_DONE != 0, errno, payload, offset }
    }

    /// Sends a request and returns the error number of its reply.
    pub fn call(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) -> u32 {
        let cookie = self.request(flags, command, offset, len, payload);
        let reply = self.reply(0);
        assert_eq!(reply.cookie, cookie);
        assert!(reply.done);
        reply.errno
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        let flags = if self.extended { proto::command_flag::PAYLOAD_LEN } else { 0 };
        self.call(flags, proto::command::WRITE, offset, data.len() as u64, data)
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        self.read_flags(0, offset, len).map(|(data, _)| data)
    }

    /// Data and the types of its chunks.
    pub fn read_flags(&mut self, flags: u16, offset: u64, len: usize) -> Result<(Vec<u8>, Vec<u16>), u32> {
        let cookie = self.request(flags, proto::command::READ, offset, len as u64, &[]);
        self.collect(cookie, offset, len)
    }

    /// The whole reply to a read; checks that every byte comes once.
    pub fn collect(&mut self, cookie: u64, offset: u64, len: usize) -> Result<(Vec<u8>, Vec<u16>), u32> {
        let mut data = vec![0xee; len];
        let mut covered = 0;
        let mut kinds = Vec::new();
        let mut failed = None;
        loop {
            let reply = self.reply(len);
            assert_eq!(reply.cookie, cookie);
            if self.extended {
                assert_eq!(reply.offset, Some(offset), "extended replies repeat the request's offset");
            }
            if reply.errno != 0 {
                failed = Some(reply.errno);
            }
            match reply.kind {
                None => return if reply.errno == 0 { Ok((reply.payload, kinds)) } else { Err(reply.errno) },
                Some(kind) => kinds.push(kind),
            }
            let mut cursor = Cursor(&reply.payload);
            match reply.kind {
                Some(proto::chunk::OFFSET_DATA) => {
                    let at = (cursor.u64().unwrap() - offset) as usize;
                    data[at..at + cursor.0.len()].copy_from_slice(cursor.0);
                    covered += cursor.0.len();
                }
                Some(proto::chunk::OFFSET_HOLE) => {
                    let at = (cursor.u64().unwrap() - offset) as usize;
                    let n = cursor.u32().unwrap() as usize;
                    assert!(n > 0);
                    data[at..at + n].fill(0);
                    covered += n;
                }
                _ => {}
            }
            if reply.done {
                break;
            }
        }
        match failed {
            Some(errno) => Err(errno),
            None => {
                assert_eq!(covered, len, "every byte comes once");
                Ok((data, kinds))
            }
        }
    }

    /// Extents of a block status reply.
    pub fn status(&mut self, flags: u16, offset: u64, len: u64) -> Result<Vec<(u64, u64)>, u32> {
        self.request(flags, proto::command::BLOCK_STATUS, offset, len, &[]);
        self.status_reply()
    }

    pub fn status_reply(&mut self) -> Result<Vec<(u64, u64)>, u32> {
        let (id, extents, done) = self.status_chunk()?;
        assert_eq!(id, proto::BASE_ALLOCATION_ID);
        assert!(done);
        Ok(extents)
    }

    /// All contexts of a block status reply, by their numbers.
    pub fn status_of_all(&mut self, flags: u16, offset: u64, len: u64) -> Result<Statuses, u32> {
        self.request(flags, proto::command::BLOCK_STATUS, offset, len, &[]);
        self.status_chunks()
    }

    pub fn status_chunks(&mut self) -> Result<Statuses, u32> {
        let mut all = Statuses::new();
        loop {
            let (id, extents, done) = self.status_chunk()?;
            assert!(all.insert(id, extents).is_none(), "context {id} comes twice");
            if done {
                return Ok(all);
            }
        }
    }

    fn status_chunk(&mut self) -> Result<StatusChunk, u32> {
        let reply = self.reply(0);
        if reply.errno != 0 {
            return Err(reply.errno);
        }
        let mut cursor = Cursor(&reply.payload);
        let id = cursor.u32().unwrap();
        let mut extents = Vec::new();
        if self.extended {
            assert_eq!(reply.kind, Some(proto::chunk::BLOCK_STATUS_EXT));
            let count = cursor.u32().unwrap();
            for _ in 0..count {
                extents.push((cursor.u64().unwrap(), cursor.u64().unwrap()));
            }
        } else {
            assert_eq!(reply.kind, Some(proto::chunk::BLOCK_STATUS));
            while let (Some(len), Some(flags)) = (cursor.u32(), cursor.u32()) {
                extents.push((u64::from(len), u64::from(flags)));
            }
        }
        assert!(cursor.0.is_empty());
        Ok((id, extents, reply.done))
    }

    pub fn disconnect(&mut self) {
        self.request(0, proto::command::DISC, 0, 0, &[]);
        assert!(self.is_closed());
    }
}

/// A context's number, its extents, and whether nothing follows.
type StatusChunk = (u32, Vec<(u64, u64)>, bool);

/// Extents of each context.
pub type Statuses = std::collections::BTreeMap<u32, Vec<(u64, u64)>>;

/// Data of INFO and GO.
pub fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|number| number.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}
