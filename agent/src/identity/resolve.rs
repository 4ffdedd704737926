//! From the kernel's origin to an identity, checked against /proc.
