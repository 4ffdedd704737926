//! Source: a helper program, with a timeout and bounded output.
