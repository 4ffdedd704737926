# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_callgate_global_optspecs
    string join \n h/help V/version
end

function __fish_callgate_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_callgate_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_callgate_using_subcommand
    set -l cmd (__fish_callgate_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c callgate -n "__fish_callgate_needs_command" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_needs_command" -s V -l version -d 'Print version'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "run" -d 'Run the agent'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "exec" -d 'Run a command as a workload'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "enable" -d 'Make a systemd service a workload, or a part of one'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "disable" -d 'Make a systemd service an ordinary one again'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "check" -d 'Show every error in settings and policy'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "explain" -d 'Show the decision on a call, and why'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "status" -d 'Show what runs'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "reload" -d 'Put the changed policy in force'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "release" -d 'Let workloads go: they are managed no more'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "audit" -d 'Follow and show the records'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "doctor" -d 'Show what this host lacks, and the fix'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "prepare" -d 'Mounts and makes what the confined agent can\'t; started by the unit before `run`'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "worker" -d 'The unprivileged half; started by `run`'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "canary" -d 'One connect from inside a workload; started by `run`'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "view" -d 'Makes what an ordinary user\'s command runs in; started by `doctor`'
complete -c callgate -n "__fish_callgate_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c callgate -n "__fish_callgate_using_subcommand run" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand run" -l user -d 'Go on as this user, with the same capabilities' -r
complete -c callgate -n "__fish_callgate_using_subcommand run" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand exec" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand exec" -s w -l workload -d 'The workload whose rules apply' -r
complete -c callgate -n "__fish_callgate_using_subcommand exec" -s u -l user -d 'Run as this user (name or number); only root may' -r
complete -c callgate -n "__fish_callgate_using_subcommand exec" -l shared-tmp -d 'Let the command share /tmp and /var/tmp, with the sockets of terminals and editors that are in them'
complete -c callgate -n "__fish_callgate_using_subcommand exec" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand enable" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand enable" -s w -l workload -d 'The workload; without it, the one whose `units` in the policy name this unit' -r
complete -c callgate -n "__fish_callgate_using_subcommand enable" -l leave-open -d 'Leave a service of the host in the unit\'s reach, like /run/dbus/system_bus_socket' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand enable" -l dry-run -d 'Change nothing; show the drop-in and what would not work, and why'
complete -c callgate -n "__fish_callgate_using_subcommand enable" -l force -d 'Do it also if something is refused'
complete -c callgate -n "__fish_callgate_using_subcommand enable" -l allow-privileged -d 'Accept commands that the unit runs with full privileges (`+`), outside of what holds it'
complete -c callgate -n "__fish_callgate_using_subcommand enable" -l json -d 'One JSON document'
complete -c callgate -n "__fish_callgate_using_subcommand enable" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c callgate -n "__fish_callgate_using_subcommand disable" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand check" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand check" -l policy-dir -d 'The policy\'s directory, instead of the one that the settings name' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand check" -l no-secrets -d 'Leave out the files that credentials come from; without root they always are, as only the agent may read them'
complete -c callgate -n "__fish_callgate_using_subcommand check" -l json -d 'One JSON document instead of text'
complete -c callgate -n "__fish_callgate_using_subcommand check" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand explain" -s w -l workload -d 'The workload that calls' -r
complete -c callgate -n "__fish_callgate_using_subcommand explain" -l exe -d 'The caller\'s executable' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand explain" -l exe-sha256 -d 'The executable\'s digest' -r
complete -c callgate -n "__fish_callgate_using_subcommand explain" -l user -d 'The caller\'s user: a name or a number' -r
complete -c callgate -n "__fish_callgate_using_subcommand explain" -l unit -d 'The caller\'s systemd unit' -r
complete -c callgate -n "__fish_callgate_using_subcommand explain" -l container -d 'The caller\'s container' -r
complete -c callgate -n "__fish_callgate_using_subcommand explain" -s H -l header -d 'A header of the request, KEY:VALUE; may be repeated' -r
complete -c callgate -n "__fish_callgate_using_subcommand explain" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand explain" -l policy-dir -d 'The policy\'s directory, instead of the one that the settings name' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand explain" -l json -d 'One JSON document instead of text'
complete -c callgate -n "__fish_callgate_using_subcommand explain" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand status" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand status" -l json -d 'One JSON document'
complete -c callgate -n "__fish_callgate_using_subcommand status" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand reload" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand reload" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand release" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand release" -l all -d 'All workloads; the agent must be stopped'
complete -c callgate -n "__fish_callgate_using_subcommand release" -l running -d 'Also those in which processes run: these keep running, and nothing holds them any more'
complete -c callgate -n "__fish_callgate_using_subcommand release" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and not __fish_seen_subcommand_from tail show help" -l config -d 'The agent\'s settings, which say where the log is' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand audit; and not __fish_seen_subcommand_from tail show help" -l file -d 'The log, instead of the one that the settings name' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand audit; and not __fish_seen_subcommand_from tail show help" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and not __fish_seen_subcommand_from tail show help" -f -a "tail" -d 'Show the last records'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and not __fish_seen_subcommand_from tail show help" -f -a "show" -d 'Show all fields of one record'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and not __fish_seen_subcommand_from tail show help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from tail" -l workload -d 'Only records of this workload' -r
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from tail" -s n -l lines -d 'How many records to begin with' -r
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from tail" -l config -d 'The agent\'s settings, which say where the log is' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from tail" -l file -d 'The log, instead of the one that the settings name' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from tail" -s f -l follow -d 'Go on with each new record'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from tail" -l json -d 'Print records as they are in the file, one JSON document a line'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from tail" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from show" -l config -d 'The agent\'s settings, which say where the log is' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from show" -l file -d 'The log, instead of the one that the settings name' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from show" -l json -d 'Print the record as it is in the file'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from help" -f -a "tail" -d 'Show the last records'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show all fields of one record'
complete -c callgate -n "__fish_callgate_using_subcommand audit; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c callgate -n "__fish_callgate_using_subcommand doctor" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand doctor" -l json -d 'Print one JSON document instead of a table'
complete -c callgate -n "__fish_callgate_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand prepare" -l config -d 'The agent\'s settings' -r -F
complete -c callgate -n "__fish_callgate_using_subcommand prepare" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand worker" -l uid -d 'User id' -r
complete -c callgate -n "__fish_callgate_using_subcommand worker" -l gid -d 'Group id' -r
complete -c callgate -n "__fish_callgate_using_subcommand worker" -l log-level -d 'What the log shows' -r
complete -c callgate -n "__fish_callgate_using_subcommand worker" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand canary" -l uid -d 'User id' -r
complete -c callgate -n "__fish_callgate_using_subcommand canary" -l gid -d 'Group id' -r
complete -c callgate -n "__fish_callgate_using_subcommand canary" -l netns -d 'Enter the network namespace that is standard output'
complete -c callgate -n "__fish_callgate_using_subcommand canary" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand view" -s h -l help -d 'Print help'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "run" -d 'Run the agent'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "exec" -d 'Run a command as a workload'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "enable" -d 'Make a systemd service a workload, or a part of one'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "disable" -d 'Make a systemd service an ordinary one again'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "check" -d 'Show every error in settings and policy'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "explain" -d 'Show the decision on a call, and why'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "status" -d 'Show what runs'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "reload" -d 'Put the changed policy in force'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "release" -d 'Let workloads go: they are managed no more'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "audit" -d 'Follow and show the records'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "doctor" -d 'Show what this host lacks, and the fix'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "prepare" -d 'Mounts and makes what the confined agent can\'t; started by the unit before `run`'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "worker" -d 'The unprivileged half; started by `run`'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "canary" -d 'One connect from inside a workload; started by `run`'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "view" -d 'Makes what an ordinary user\'s command runs in; started by `doctor`'
complete -c callgate -n "__fish_callgate_using_subcommand help; and not __fish_seen_subcommand_from run exec enable disable check explain status reload release audit doctor prepare worker canary view help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c callgate -n "__fish_callgate_using_subcommand help; and __fish_seen_subcommand_from audit" -f -a "tail" -d 'Show the last records'
complete -c callgate -n "__fish_callgate_using_subcommand help; and __fish_seen_subcommand_from audit" -f -a "show" -d 'Show all fields of one record'
