//! Which compressions there are, by number on the disk and by word in a policy.

use std::fmt;

/// How payload is compressed, where that makes it smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Codec {
    /// Not at all.
    None,
    /// An LZ4 block without a frame of its own: quick.
    #[default]
    Lz4,
    /// A zstd frame: smaller, and slower to write.
    Zstd,
}

const ALL: [(Codec, u8, &str); 3] =
    [(Codec::None, 0, "none"), (Codec::Lz4, 1, "lz4"), (Codec::Zstd, 2, "zstd")];

impl Codec {
    /// The number on the disk.
    pub fn number(self) -> u8 {
        self.row().1
    }

    /// Of a number on the disk; `None` for one that this version does not know.
    pub fn from_number(number: u8) -> Option<Codec> {
        ALL.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// Of the word in a policy.
    pub fn from_word(word: &str) -> Option<Codec> {
        ALL.iter().find(|row| row.2 == word).map(|row| row.0)
    }

    fn row(self) -> (Codec, u8, &'static str) {
        match self {
            Codec::None => ALL[0],
            Codec::Lz4 => ALL[1],
            Codec::Zstd => ALL[2],
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that changes its meaning makes folds unreadable that were written before.
    #[test]
    fn numbers_and_words_stay() {
        let words = ALL.map(|(codec, number, word)| {
            assert_eq!((codec.number(), Codec::from_number(number)), (number, Some(codec)));
            assert_eq!(Codec::from_word(word), Some(codec));
            format!("{number} {codec}")
        });
        assert_eq!(words, ["0 none", "1 lz4", "2 zstd"]);
        assert_eq!((Codec::from_number(3), Codec::from_word("gzip")), (None, None));
    }
}
