//! `callgate reload`: new policy, or the reasons why not.
