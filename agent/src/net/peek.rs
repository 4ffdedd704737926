//! The first bytes of a connection, bounded and timed, replayed to whoever reads next.
