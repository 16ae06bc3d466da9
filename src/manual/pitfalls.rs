//! Past failures of others, facts of the kernel that invite them, and the tests that show that they do
//! not happen here.
//!
//! Each row is a case of identity, of ways of the kernel to bytes, of the life of the mount or of the
//! control socket; `tests/security.rs` checks that its tests are there. Not among them: an export by
//! knfsd, whose requests come from threads of the kernel and are refused as such; approvals, which
//! this version does not have.
//!
//! | case | test |
//! | --- | --- |
//! | Reads without a lock owner: mmap, splice, sendfile, also after another reader | `nothing_enters_the_page_cache` |
//! |  | `what_one_reader_was_refused_the_next_does_not_find_in_the_page_cache` |
//! | Everyday tools copy a secret all the same; sizes are true | `every_common_tool_copies_the_whole_secret` |
//! |  | `io_uring_and_libaio_read_the_whole_secret_and_a_polling_ring_nothing` |
//! | INIT asks for parallel directories and for nothing that changes who is judged | `the_mount_asks_for_parallel_directories_and_for_nothing_that_changes_who_is_judged` |
//! | A slow lookup delays no other name | `a_slow_name_does_not_delay_another_in_its_directory_nor_the_listing` |
//! | Entries are not cached: a stranger right after an agent | `a_stranger_who_opens_right_after_an_agent_finds_nothing` |
//! | ENOSYS, which is sticky: listings, a second `ls` | `listings_of_two_callers_are_never_mixed_and_positions_hold` |
//! |  | `a_second_listing_asks_for_no_extended_attributes` |
//! | Thread ids: other threads, a main thread that has exited, io_uring workers | `threads_and_daemonised_children_are_the_agent_and_another_uid_is_not` |
//! |  | `a_thread_is_its_process_also_when_the_main_thread_has_exited` |
//! | Callers outside the pid namespace, threads of the kernel, polling rings | `a_caller_whom_the_daemon_cannot_see_is_told_nothing` |
//! |  | `a_thread_of_the_kernel_is_refused` |
//! |  | `io_uring_and_libaio_read_the_whole_secret_and_a_polling_ring_nothing` |
//! | A ring, its memory and an open secret in the hands of another execution | `a_ring_and_a_descriptor_in_other_hands_are_judged_as_who_submits` |
//! | Descriptors passed, inherited, reopened through `/proc` | `a_descriptor_in_other_hands_reads_nothing` |
//! |  | `a_descriptor_is_worth_nothing_to_another_agent_and_only_its_own_to_another_execution` |
//! |  | `what_is_reached_through_an_agents_proc_entry_is_judged_as_the_real_caller` |
//! | Exec: what passes it, what waits for an answer, what the record calls it | `what_passes_an_exec_stays_with_the_execution_and_ends_with_it` |
//! |  | `an_exec_beside_a_request_waits_for_its_answer` |
//! |  | `a_program_that_an_agents_shell_runs_is_the_agent_and_on_record_by_its_file` |
//! | Ids that return after a wrap | `an_id_that_returns_is_judged_anew_in_both_directions` |
//! |  | `a_cached_thread_that_has_ended_is_not_believed` |
//! | Forks of every kind, subreapers, sessions; the end of the root process | `children_made_in_every_way_are_the_agent` |
//! |  | `an_ended_execution_reads_nothing_through_what_it_still_holds` |
//! | Other uids: threads, setuid programs, overlayfs | `a_thread_that_took_another_uid_reads_nothing_and_the_others_read_on` |
//! |  | `a_program_that_takes_its_files_owners_rights_gets_no_view` |
//! |  | `through_an_overlay_a_stranger_reads_nothing_and_a_uid_alone_is_nobody` |
//! | A process writes itself into another's group | `no_process_can_put_itself_into_the_group_of_another_execution` |
//! |  | `a_root_agent_that_is_isolated_cannot_leave_its_group` |
//! | Nothing runs before it is registered | `a_child_is_in_the_cgroup_before_its_first_instruction` |
//! |  | `a_launch_in_work_gets_the_replacement_or_is_ended` |
//! | Names, mounts and namespaces that an agent makes | `namespaces_that_an_agent_makes_change_nothing_about_who_it_is` |
//! |  | `mounts_that_an_agent_makes_are_its_own_and_bring_others_nothing` |
//! | Two executions of one agent are never mixed; one inode, one content | `readers_of_two_executions_never_share_bytes` |
//! |  | `one_name_for_two_versions_has_two_inodes_and_each_its_size` |
//! | Debuggers and neighbours of one uid | `isolated_agents_of_one_user_neither_see_nor_trace_nor_signal_each_other` |
//! |  | `landlock_stops_signals_traces_and_abstract_sockets_where_a_pid_is_known` |
//! | Directories look the same to everybody: working directories, mounts on them | `a_stranger_who_looks_at_a_directory_disturbs_nobody_who_works_in_it` |
//! | Copies within the mount: copy_file_range, sendfile, clones into `events` | `nothing_copies_a_secret_into_an_event_file_beside_read` |
//! | Loop devices | `a_loop_device_over_a_secret_reads_nothing_for_anybody` |
//! | Handles by number, links, xattrs, ioctl, locks, truncation | `what_would_change_or_bypass_a_secret_is_refused_with_its_own_number` |
//! | Hostile offsets and names | `hostile_offsets_and_sizes_read_the_file_and_nothing_else` |
//! |  | `hostile_names_are_absent_and_never_disturb` |
//! | Indexers and backup tools crawl the mount | `crawlers_are_served_and_their_refusals_are_few_records_with_the_whole_count` |
//! | FLUSH and RELEASE are no reads; as many records as reads | `children_that_hold_a_descriptor_and_exit_leave_no_record_of_a_read` |
//! |  | `eight_readers_leave_exactly_as_many_records_as_they_read` |
//! | Requests held: killed readers, frozen groups, hanging stores, panics | `a_killed_reader_is_gone_once_its_request_is_answered` |
//! |  | `a_frozen_group_with_a_request_in_work_freezes_when_it_is_answered` |
//! |  | `a_frozen_reader_freezes_at_once_and_reads_on_when_it_is_thawed` |
//! |  | `a_store_that_hangs_keeps_nobody_from_reading_secrets` |
//! |  | `a_handler_that_panics_answers_eio_raises_an_alarm_and_costs_no_thread` |
//! | The daemon and its own mount; notifications out of handlers | `a_daemon_whose_own_files_would_lie_beneath_its_mount_is_refused_at_the_start` |
//! |  | `no_handler_notifies_the_kernel` |
//! | Dead, covered, taken away and strangers' mounts; old namespaces | `down_leaves_no_mount_and_up_clears_a_dead_one_but_no_strangers` |
//! |  | `what_others_mounted_over_or_instead_of_the_mount_is_there_after_the_end` |
//! |  | `a_mount_that_was_taken_away_comes_back_and_agents_start_again` |
//! |  | `a_namespace_from_before_a_restart_sees_the_new_mount_if_its_parent_is_shared` |
//! | Deaths of the worker and of the keeper under load | `no_read_or_write_fails_and_each_is_done_once_while_workers_are_killed` |
//! |  | `no_read_fails_while_servers_are_killed_under_load` |
//! |  | `agents_outlive_keeper_and_worker_with_their_files_pins_and_identity` |
//! | Event files: cuts, appends, offsets, lengths, as a plain filesystem would have them | `what_is_stored_is_what_redaction_makes_of_a_plain_directory` |
//! |  | `fio_reads_back_what_it_wrote_in_order_and_at_random` |
//! | Event files: links, devices, shared mappings, ways out of the store | `names_links_and_devices_with_or_as_a_way_out_are_refused` |
//! |  | `nothing_leads_out_of_the_store` |
//! | Locked memory, the log at its most talkative | `no_page_of_the_worker_can_be_swapped_where_it_may_lock_them` |
//! |  | `the_log_at_its_most_talkative_holds_no_name_and_no_value` |
//! | Sandboxes around the daemon | `with_the_units_capabilities_alone_everything_works` |
//! |  | `no_setting_hides_the_mount_or_breaks_what_the_daemon_does` |
//! | Numbers are counts and ratios | `open_read_and_close_of_a_secret_cost_four_requests` |
//! | Control socket: agents, forged launches, chains and processes, races | `an_agent_has_no_role_whatever_its_uid` |
//! |  | `an_agent_forges_no_launch_no_process_and_no_chain` |
//! |  | `an_agent_launches_nothing_else_and_obtains_no_value_that_way` |
//! | Control socket: too much, too long, too slow | `what_is_too_long_or_no_request_at_all_is_refused_and_others_are_served` |
//! |  | `connections_without_end_and_slow_ones_leave_room_for_their_owner` |
//! | Control socket: connections in other hands, squatted paths | `a_socket_in_other_hands_is_still_that_of_who_connected` |
//! |  | `a_peer_that_handed_its_socket_on_and_ended_is_not_alive` |
//! |  | `what_stands_at_the_sockets_path_is_replaced_and_links_are_not_followed` |
#![forbid(unsafe_code)]
