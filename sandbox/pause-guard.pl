# Ends the sandboxes of the process that started this script when that process lets its time run out: paused, or stuck, it cannot do so
# itself, and by then another worker may run tools in the same directories. Each line on stdin is the time that is left, in milliseconds.
use strict;
use warnings;
use Time::HiRes ();

my $CLOCK_BOOTTIME = 7;    # goes on while the machine sleeps
my $LOOK_SECONDS = 0.25;
my ($owner) = @ARGV;
my $until;
my $heard = '';

sub now { return Time::HiRes::clock_gettime($CLOCK_BOOTTIME) }

sub children {
    my @pids;
    for my $list (glob "/proc/$owner/task/*/children") {
        open my $file, '<', $list or next;
        push @pids, split ' ', <$file> // '';
    }
    return @pids;
}

sub name_of {
    my ($pid) = @_;
    open my $file, '<', "/proc/$pid/comm" or return '';
    chomp(my $name = <$file> // '');
    return $name;
}

while (1) {
    vec(my $readable = '', 0, 1) = 1;
    if (select($readable, undef, undef, $LOOK_SECONDS)) {
        sysread(STDIN, $heard, 4096, length $heard) or exit;    # its end ends the sandboxes too
        $until = now() + $1 / 1000 while $heard =~ s/\A(\d+)\n//;
    }
    next if !defined $until || now() < $until;
    # Bubblewrap's inner half dies with it; a container ends with its client's input.
    kill 'KILL', $_ for grep { name_of($_) =~ /\A(?:bwrap|docker)\z/ } children();
}
