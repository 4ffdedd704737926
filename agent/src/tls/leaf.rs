//! Leaf certificates, minted for an exact name and cached.
