//! The claims that a shared type is plain bytes; [`crate::layout`] shows that none has hidden padding.
#![expect(
    unsafe_code,
    reason = "aya::Pod is an unsafe trait; this is the one place that implements it"
)]

use crate::flow::{BudgetKey, EventBudget, FlowShare, FlowUse, SuppressedKey};
use crate::{
    DialKey, DirectKey, Event, FlowKey, KernelConfig, Listener, ListenerKey, ListenerMark, Origin, SocketMark,
};

macro_rules! pod {
    ($($name:ident),+) => {$(
        // SAFETY: `repr(C)`, integers and byte arrays only, no padding, any bit pattern is valid.
        unsafe impl aya::Pod for $name {}
    )+};
}
pod!(
    BudgetKey,
    DialKey,
    DirectKey,
    Event,
    EventBudget,
    FlowKey,
    FlowShare,
    FlowUse,
    KernelConfig,
    Listener,
    ListenerKey,
    ListenerMark,
    Origin,
    SocketMark,
    SuppressedKey
);
