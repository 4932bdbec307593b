//! The format's ids of value types.

/// 8-bit unsigned integer.
pub const UINT8: u32 = 0;
/// 8-bit signed integer.
pub const INT8: u32 = 1;
/// 16-bit unsigned integer.
pub const UINT16: u32 = 2;
/// 16-bit signed integer.
pub const INT16: u32 = 3;
/// 32-bit unsigned integer.
pub const UINT32: u32 = 4;
/// 32-bit signed integer.
pub const INT32: u32 = 5;
/// 32-bit float.
pub const FLOAT32: u32 = 6;
/// Boolean, one byte.
pub const BOOL: u32 = 7;
/// String: a 64-bit length, then UTF-8.
pub const STRING: u32 = 8;
/// Array: an element type, a 64-bit length, then the elements.
pub const ARRAY: u32 = 9;
/// 64-bit unsigned integer.
pub const UINT64: u32 = 10;
/// 64-bit signed integer.
pub const INT64: u32 = 11;
/// 64-bit float.
pub const FLOAT64: u32 = 12;
