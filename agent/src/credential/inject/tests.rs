//! What leaves on a request, and what never does.
