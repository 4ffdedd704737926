//! The record's form on disk.

use super::*;
