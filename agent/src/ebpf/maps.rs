//! Typed handles on the kernel's maps.
