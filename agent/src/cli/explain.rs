//! `callgate explain`: the decision on one described call, and the rule path.
