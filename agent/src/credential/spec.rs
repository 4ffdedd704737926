//! What the policy says about a credential: hosts, scheme, source.
