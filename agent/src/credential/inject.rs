//! Takes the client's credentials off and puts ours on; the only caller of expose().
