//! Properties of decisions, against an evaluator that knows no index.
