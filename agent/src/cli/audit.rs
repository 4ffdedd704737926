//! `callgate audit`: follow and show the records.
