# The first process of a container, resident until its one program is over, so that a call that finds it waiting needs no `docker exec`.
# It says `ready` on both streams, reads a job from stdin, runs it with the container's own stdout and stderr, ends whatever the program left
# running, and closes each stream with the job's secret word, the exit status behind it on stdout. It keeps no other process from reading
# its memory and descriptors by being undumpable: the program, of the same user, never learns the word.
# Arguments: the number of the call prctl.
use strict;
use warnings;

my $PR_SET_DUMPABLE = 4;
syscall($ARGV[0], $PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 or exit 125;
$SIG{PIPE} = "IGNORE";

sub say_all {
    my ($to, $text) = @_;
    while (length $text) {
        my $written = syswrite($to, $text);
        # The program may have made the pipe non-blocking, and full.
        defined $written ? substr($text, 0, $written, "") : $!{EAGAIN} || $!{EINTR} ? select(undef, undef, undef, 0.01) : return;
    }
}

# Unbuffered: what follows the job is the program's input. Nothing more to read is a gateway that is gone.
sub take {
    my ($left, $taken) = (@_, "");
    while ($left > 0) {
        my $read = sysread(STDIN, $taken, $left, length $taken);
        exit 125 unless $read || !defined $read && $!{EINTR};
        $left -= $read || 0;
    }
    return $taken;
}

say_all(\*STDERR, "ready\n");
say_all(\*STDOUT, "ready\n");
my ($word, $seconds, $has_input, @argv) = split /\0/, take(unpack("N", take(4))), -1;

# A gateway that was killed leaves nothing behind for longer than the program might have run.
$SIG{ALRM} = sub { kill KILL => -1; exit 124 };
alarm $seconds;

my $program = fork;
exit 125 unless defined $program;
if (!$program) {
    open(STDIN, "<", "/dev/null") unless $has_input;
    $SIG{PIPE} = $SIG{ALRM} = "DEFAULT";
    alarm 0;
    setpgrp;
    no warnings "exec";
    exec { $argv[0] } @argv;
    print STDERR "$argv[0]: $!\n";
    exit($!{ENOENT} ? 127 : 126);
}
# Without input the end of stdin says that the gateway is gone.
my $watcher = $has_input ? 0 : fork;
if (defined $watcher && !$watcher && !$has_input) {
    1 while sysread(STDIN, my $ignored, 1);
    exit 0;
}
close STDIN;

my $status;
until (defined $status) {
    my $ended = wait;
    $status = $? if $ended == $program;
    if ($watcher && $ended == $watcher && $? == 0) { kill KILL => -1; exit 125 }
}
do { kill KILL => -1 } until wait == -1;

say_all(\*STDERR, $word);
say_all(\*STDOUT, sprintf("%s%03d", $word, $status & 127 ? 128 + ($status & 127) : $status >> 8));
# The gateway ends the container; until then its group tells what the program used.
alarm 10;
sleep 1 while 1;
