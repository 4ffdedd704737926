//! What the worker gives up before it reads its first byte.
