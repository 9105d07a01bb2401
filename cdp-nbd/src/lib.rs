//! An NBD server for time-addressed block devices.
