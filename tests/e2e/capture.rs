//! The kernel side alone: every way to connect, what the accepted socket then says, and what is refused.

mod world;

use world::in_world;

macro_rules! worlds {
    ($module:ident: $($name:ident)+) => {$(
        #[test]
        fn $name() {
            in_world(stringify!($name), $module::$name);
        }
    )+};
}

worlds! {
    odd:
    io_uring_connects_are_redirected
    io_uring_sends_no_datagrams
    datagrams_that_nobody_asked_for_do_not_come_in
    a_connection_made_before_the_arming_sends_nothing_more
    a_socket_that_can_not_leave_its_device_is_refused
    a_socket_that_becomes_an_ipv4_one_stays_redirected
    packets_with_a_route_of_their_own_do_not_leave
    segments_of_more_than_64_kib_pass_the_perimeter
    a_socket_under_repair_reaches_nobody
    what_the_agent_sends_from_a_loopback_address_stays_on_the_host
}

worlds! {
    flows:
    a_full_flow_table_refuses_and_counts
    a_workload_that_fills_its_share_keeps_nobody_else_out
    a_connection_that_is_gone_lends_nobody_its_name
    what_a_workload_accepted_is_its_own
}

worlds! {
    told:
    a_direct_rule_passes_and_is_reported
    a_flood_of_refusals_is_cut_and_counted
    direct_connections_are_told_of_behind_a_flood
    what_is_withdrawn_stays_held_with_nothing_allowed
    what_lies_on_another_level_than_before_stays_held
}

worlds! {
    cases:
    a_redirected_connection_carries_its_callers_facts
    every_way_to_connect_is_redirected
    what_no_rule_names_is_refused_at_once
    the_same_source_port_on_two_addresses_is_told_apart
    sockets_made_elsewhere_are_refused
    only_tcp_and_udp_sockets_can_be_made
    udp_is_refused_except_dns_to_the_stub
    a_silent_agent_means_refused
    a_dead_agents_port_taken_by_another_gets_nothing
    ten_thousand_connections_are_told_apart
    nothing_may_be_listened_on_unless_the_plan_says_so
    an_unmanaged_process_is_untouched
    a_new_run_takes_over_and_finds_what_was_removed
    what_was_detached_and_is_back_before_anybody_looked_is_named
    pins_of_another_version_are_refused
    a_missing_feature_is_named
    a_socket_connected_before_the_arming_sends_nothing_more
    after_disarm_nothing_is_captured
}

worlds! {
    delegated:
    whatever_the_owner_of_cgroups_below_a_workload_makes_of_them_is_captured
}

worlds! {
    verifier:
    the_verifier_accepts_every_program_of_every_build
}

mod cases;
mod delegated;
mod flows;
mod odd;
mod told;
mod verifier;
