//! What the benchmark is made of: an NBD load client of its own (it shares no code with the server, so it
//! cannot share its bugs), the plain servers it is compared with, the rows, and the report.

pub mod client;
pub mod host;
pub mod load;
pub mod report;
pub mod rows;
pub mod servers;
pub mod stamp;
pub mod wire;
