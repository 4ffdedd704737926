//! Talking to the service manager: readiness, watchdog, descriptor store.
