//! Sources that change, fail and come back.
