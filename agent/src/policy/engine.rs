//! decide() and route(): pure, deny wins, default deny.
