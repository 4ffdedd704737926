//! Sizes on both sides of the kernel boundary, checked when either is compiled.

use crate::flow::{BudgetKey, EventBudget, FlowShare, FlowUse, SuppressedKey};
use crate::{
    DialKey, DirectKey, Event, FlowKey, KernelConfig, Listener, ListenerKey, ListenerMark, Origin,
    SocketMark, TaskOffsets,
};

const _: () = assert!(size_of::<Origin>() == 7 * 8 + 6 * 4 + 16 + 16 + 2 + 1 + 1 + 4);
const _: () = assert!(align_of::<Origin>() == 8);
const _: () = assert!(size_of::<Event>() == size_of::<Origin>() + 8);
const _: () = assert!(size_of::<SocketMark>() == 24);
const _: () = assert!(size_of::<ListenerMark>() == 4);
const _: () = assert!(size_of::<FlowKey>() == 32);
const _: () = assert!(size_of::<ListenerKey>() == 16);
const _: () = assert!(size_of::<Listener>() == 8);
const _: () = assert!(size_of::<DialKey>() == 8);
const _: () = assert!(size_of::<DirectKey>() == 24);
const _: () = assert!(size_of::<EventBudget>() == 16);
const _: () = assert!(size_of::<BudgetKey>() == 8);
const _: () = assert!(size_of::<SuppressedKey>() == 28);
const _: () = assert!(size_of::<FlowUse>() == 16);
const _: () = assert!(size_of::<FlowShare>() == 16);
const _: () = assert!(size_of::<TaskOffsets>() == 40);
const _: () = assert!(size_of::<KernelConfig>() == 3 * 8 + 2 * 4 + size_of::<TaskOffsets>());
