//! Pure bytes: what stands in the files, encoded and checked by hand. No I/O here.

pub mod run;
