//! Tables and properties of compiling and deciding.
