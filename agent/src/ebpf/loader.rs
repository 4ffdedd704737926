//! Load, attach and pin, in that order.
