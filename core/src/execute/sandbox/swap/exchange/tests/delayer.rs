//! delayer
