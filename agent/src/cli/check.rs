//! `callgate check`: every error in config and policy; touches nothing.
