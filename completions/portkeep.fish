# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_portkeep_global_optspecs
    string join \n h/help V/version
end

function __fish_portkeep_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_portkeep_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_portkeep_using_subcommand
    set -l cmd (__fish_portkeep_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c portkeep -n "__fish_portkeep_needs_command" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_needs_command" -s V -l version -d 'Print version'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "run" -d 'Run a command with ports that nobody else can take'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "acquire" -d 'Reserve ports and keep them until standard input ends'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "release" -d 'End a reservation of any process'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "persist" -d 'Reserve ports for a service, user, group or cgroup, for good'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "check" -d 'Check drop-ins and the configuration for mistakes'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "reload" -d 'Let the agent read its configuration and the drop-ins again'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "excludedportrange" -d 'Exclude ports in the words of Windows\' netsh'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "up" -d 'Bring the kernel part up'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "down" -d 'Take the kernel part away, and all reservations with it'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "upgrade" -d 'Swap the kernel part that is up for the one of this version'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "agent" -d 'Keep what is declared in force, confirm reservations outside the pool, and log what happens'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "status" -d 'Tell what is enforced and where'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "list" -d 'List reservations and who holds them'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "who" -d 'Tell whose port this is'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "watch" -d 'Tell what happens from now on'
complete -c portkeep -n "__fish_portkeep_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -s n -l count -d 'Number of ports, in a row' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l at -d 'First port; without it the system chooses from the pool' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l align -d 'Make the first port a multiple of N, a power of two (2 for RTP pairs)' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -s l -l label -d 'Name shown in listings, at most 24 bytes; `run` also sets <LABEL>_PORT' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l scope -d 'Who counts as the command' -r -f -a "auto\t'Its cgroup, or where none can be made the user'
cgroup\t'It and all that it starts, by a cgroup of its own'
user\t'Every process of the same user'"
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l enforce -d 'Cgroup folder whose sockets are held to the reservations [default: the whole host]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l serve -d 'Cgroup folder whose sockets may make reservations [default: that of --enforce]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l tcp -d 'TCP ports [default]'
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l udp -d 'UDP ports'
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l both -d 'The same numbers for TCP and UDP'
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -l require-kernel -d 'Fail where the kernel cannot keep others off, rather than only hold the ports'
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -s q -l quiet -d 'Say nothing about limits of the enforcement'
complete -c portkeep -n "__fish_portkeep_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -s n -l count -d 'Number of ports, in a row' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l at -d 'First port; without it the system chooses from the pool' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l align -d 'Make the first port a multiple of N, a power of two (2 for RTP pairs)' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -s l -l label -d 'Name shown in listings, at most 24 bytes; `run` also sets <LABEL>_PORT' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l scope -d 'Who can use the ports' -r -f -a "user\t'Every process of the same user'
cgroup\t'Every process in the cgroup of the caller and below it'"
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l enforce -d 'Cgroup folder whose sockets are held to the reservations [default: the whole host]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l serve -d 'Cgroup folder whose sockets may make reservations [default: that of --enforce]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l tcp -d 'TCP ports [default]'
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l udp -d 'UDP ports'
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l both -d 'The same numbers for TCP and UDP'
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l require-kernel -d 'Fail where the kernel cannot keep others off, rather than only hold the ports'
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l strict -d 'Only sockets associated with the token can use the ports'
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -l json -d 'One JSON object on one line'
complete -c portkeep -n "__fish_portkeep_using_subcommand acquire" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c portkeep -n "__fish_portkeep_using_subcommand release" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand release" -l json -d 'One JSON object'
complete -c portkeep -n "__fish_portkeep_using_subcommand release" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and not __fish_seen_subcommand_from add delete list show export import help" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and not __fish_seen_subcommand_from add delete list show export import help" -f -a "add" -d 'Create a persistent reservation'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and not __fish_seen_subcommand_from add delete list show export import help" -f -a "delete" -d 'Delete persistent reservations'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and not __fish_seen_subcommand_from add delete list show export import help" -f -a "list" -d 'List what is declared, in force or not'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and not __fish_seen_subcommand_from add delete list show export import help" -f -a "show" -d 'Tell everything about one of them'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and not __fish_seen_subcommand_from add delete list show export import help" -f -a "export" -d 'Write what commands created as TOML'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and not __fish_seen_subcommand_from add delete list show export import help" -f -a "import" -d 'Create the reservations of a file, all or none'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and not __fish_seen_subcommand_from add delete list show export import help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l name -d 'What commands and listings call it: letters, digits and . _ @ : + -' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l tcp -d 'These TCP ports' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l udp -d 'These UDP ports' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l both -d 'The same numbers for TCP and UDP' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l any -d 'Any COUNT ports in a row, chosen now and kept' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l align -d 'With --any: make the first port a multiple of N, a power of two' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l user -d 'For the processes of this user, by name or number' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l group -d 'For the processes of this group, by name or number' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l unit -d 'For the processes of this systemd service or scope' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l cgroup -d 'For the processes of this cgroup and those below it: a path below /sys/fs/cgroup, as /system.slice' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l description -d 'One line for listings' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l administrators -d 'For administrators and nobody else [default]'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l strict -d 'Only sockets that are associated with it may bind its ports, not whoever names the number'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l around -d 'Reserve it although those it is for have some of the ports bound already'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l until-reboot -d 'Keep it until the next reboot only'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -l json -d 'One JSON object'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from delete" -l tcp -d 'The one of exactly these TCP ports' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from delete" -l udp -d 'The one of exactly these UDP ports' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from delete" -l both -d 'The one of exactly these ports of both transports' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from delete" -l json -d 'One JSON array of what was deleted'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from list" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from list" -l config -d 'Configuration file [default: /etc/portkeep/portkeep.toml, below --root]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from list" -l root -d 'The system whose files are read, where it is mounted [default: /]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from list" -l json -d 'One JSON array'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from show" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from show" -l config -d 'Configuration file [default: /etc/portkeep/portkeep.toml, below --root]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from show" -l root -d 'The system whose files are read, where it is mounted [default: /]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from show" -l json -d 'One JSON array; more than one element if the name is declared more than once'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from export" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from export" -l config -d 'Configuration file [default: /etc/portkeep/portkeep.toml, below --root]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from export" -l root -d 'The system whose files are read, where it is mounted [default: /]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from import" -l json -d 'One JSON object'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from import" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from help" -f -a "add" -d 'Create a persistent reservation'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from help" -f -a "delete" -d 'Delete persistent reservations'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from help" -f -a "list" -d 'List what is declared, in force or not'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from help" -f -a "show" -d 'Tell everything about one of them'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from help" -f -a "export" -d 'Write what commands created as TOML'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from help" -f -a "import" -d 'Create the reservations of a file, all or none'
complete -c portkeep -n "__fish_portkeep_using_subcommand persist; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c portkeep -n "__fish_portkeep_using_subcommand check" -l config -d 'Configuration file [default: /etc/portkeep/portkeep.toml, below --root]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand check" -l root -d 'The system whose files are read, where it is mounted [default: /]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand check" -l json -d 'One JSON object'
complete -c portkeep -n "__fish_portkeep_using_subcommand check" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand reload" -l json -d 'One JSON object'
complete -c portkeep -n "__fish_portkeep_using_subcommand reload" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and not __fish_seen_subcommand_from show add delete help" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and not __fish_seen_subcommand_from show add delete help" -f -a "show" -d 'Show the ranges of a protocol: [protocol=]tcp|udp [[store=]active|persistent]'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and not __fish_seen_subcommand_from show add delete help" -f -a "add" -d 'Exclude a range: [protocol=]tcp|udp [startport=]N [numberofports=]N [[store=]active|persistent]'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and not __fish_seen_subcommand_from show add delete help" -f -a "delete" -d 'Take an exclusion back: the same words'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and not __fish_seen_subcommand_from show add delete help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from show" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from show" -l config -d 'Configuration file [default: /etc/portkeep/portkeep.toml, below --root]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from show" -l root -d 'The system whose files are read, where it is mounted [default: /]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from show" -l json -d 'One JSON array'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show the ranges of a protocol: [protocol=]tcp|udp [[store=]active|persistent]'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from help" -f -a "add" -d 'Exclude a range: [protocol=]tcp|udp [startport=]N [numberofports=]N [[store=]active|persistent]'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from help" -f -a "delete" -d 'Take an exclusion back: the same words'
complete -c portkeep -n "__fish_portkeep_using_subcommand excludedportrange; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -l pool -d 'Ports that requests without a port are served from, FIRST-LAST or `none` [default: 61000-65535]' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -l quota -d 'Ports that one user may hold at a time; root has no limit [default: 1024]' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -l deny-errno -d 'What the bind of a stranger fails with [default: EADDRINUSE]' -r
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -l config -d 'Configuration file, for what is not said here' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -l enforce -d 'Cgroup folder whose sockets are held to the reservations [default: the whole host]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -l serve -d 'Cgroup folder whose sockets may make reservations [default: that of --enforce]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -l json -d 'One JSON object, as `status --json` prints it'
complete -c portkeep -n "__fish_portkeep_using_subcommand up" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand down" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand down" -l json -d 'One JSON object'
complete -c portkeep -n "__fish_portkeep_using_subcommand down" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand upgrade" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand upgrade" -l json -d 'One JSON object'
complete -c portkeep -n "__fish_portkeep_using_subcommand upgrade" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand agent" -l config -d 'Configuration file' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand agent" -l root -d 'Read drop-in files below this folder' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand agent" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand agent" -l enforce -d 'Cgroup folder whose sockets are held to the reservations [default: the whole host]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand agent" -l serve -d 'Cgroup folder whose sockets may make reservations [default: that of --enforce]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand agent" -l up -d 'Bring the kernel part up first, as the configuration says, if it is not up'
complete -c portkeep -n "__fish_portkeep_using_subcommand agent" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand status" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand status" -l json -d 'One JSON object'
complete -c portkeep -n "__fish_portkeep_using_subcommand status" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand list" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand list" -l json -d 'One JSON array'
complete -c portkeep -n "__fish_portkeep_using_subcommand list" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand who" -l pin-dir -d 'Folder of the pins, in a BPF file system [default: /sys/fs/bpf/portkeep]' -r -F
complete -c portkeep -n "__fish_portkeep_using_subcommand who" -l json -d 'One JSON array, an element for each transport'
complete -c portkeep -n "__fish_portkeep_using_subcommand who" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand watch" -l json -d 'A JSON object in each line'
complete -c portkeep -n "__fish_portkeep_using_subcommand watch" -s h -l help -d 'Print help'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "run" -d 'Run a command with ports that nobody else can take'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "acquire" -d 'Reserve ports and keep them until standard input ends'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "release" -d 'End a reservation of any process'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "persist" -d 'Reserve ports for a service, user, group or cgroup, for good'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "check" -d 'Check drop-ins and the configuration for mistakes'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "reload" -d 'Let the agent read its configuration and the drop-ins again'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "excludedportrange" -d 'Exclude ports in the words of Windows\' netsh'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "up" -d 'Bring the kernel part up'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "down" -d 'Take the kernel part away, and all reservations with it'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "upgrade" -d 'Swap the kernel part that is up for the one of this version'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "agent" -d 'Keep what is declared in force, confirm reservations outside the pool, and log what happens'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "status" -d 'Tell what is enforced and where'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "list" -d 'List reservations and who holds them'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "who" -d 'Tell whose port this is'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "watch" -d 'Tell what happens from now on'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and not __fish_seen_subcommand_from run acquire release persist check reload excludedportrange up down upgrade agent status list who watch help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from persist" -f -a "add" -d 'Create a persistent reservation'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from persist" -f -a "delete" -d 'Delete persistent reservations'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from persist" -f -a "list" -d 'List what is declared, in force or not'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from persist" -f -a "show" -d 'Tell everything about one of them'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from persist" -f -a "export" -d 'Write what commands created as TOML'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from persist" -f -a "import" -d 'Create the reservations of a file, all or none'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from excludedportrange" -f -a "show" -d 'Show the ranges of a protocol: [protocol=]tcp|udp [[store=]active|persistent]'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from excludedportrange" -f -a "add" -d 'Exclude a range: [protocol=]tcp|udp [startport=]N [numberofports=]N [[store=]active|persistent]'
complete -c portkeep -n "__fish_portkeep_using_subcommand help; and __fish_seen_subcommand_from excludedportrange" -f -a "delete" -d 'Take an exclusion back: the same words'
