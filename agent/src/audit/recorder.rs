//! The guard that ends every call in exactly one record.
