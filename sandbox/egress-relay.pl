# Runs inside the sandbox, for programs that know HTTP proxies but not sockets of a file system: listens on the loopback and carries
# each connection to the way out. It decides nothing. Arguments: port, socket, most connections at once, and our name for the sandbox.
use strict;
use Socket;
use Fcntl qw(F_SETFL O_NONBLOCK);

my ($port, $path, $most) = @ARGV;
my $ROOM = 65536;

socket(my $listener, PF_INET, SOCK_STREAM, 0) or die "the network relay has no socket: $!\n";
setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1);
bind($listener, sockaddr_in($port, INADDR_LOOPBACK)) or die "the network relay cannot listen: $!\n";
listen($listener, 128) or die "the network relay cannot listen: $!\n";
fcntl($listener, F_SETFL, O_NONBLOCK);

# Nobody's child, so that a program that waits for all of its children does not wait for this one; the shell goes on when it listens.
my $child = fork;
die "the network relay cannot start: $!\n" unless defined $child;
exit 0 if $child;
setpgrp(0, 0);
$0 = "openclaw-network-relay";
chdir "/";
# What the sandbox's first program and its caller tell each other is not for us, nor would their streams end with us holding them.
open(STDIN, "<", "/dev/null");
open(STDOUT, ">", "/dev/null");
open(STDERR, ">", "/dev/null");
for my $number (3 .. 9) {
  next if $number == fileno($listener);
  if (open(my $inherited, "<&=", $number)) { close($inherited) }
}
$SIG{PIPE} = "IGNORE";

# A pair is a connection: two ways, each with what was read and not yet written.
my %ways;
my $pairs = 0;

sub add_pair {
  accept(my $client, $listener) or return;
  my $out;
  return unless socket($out, PF_UNIX, SOCK_STREAM, 0) && connect($out, sockaddr_un($path));
  fcntl($_, F_SETFL, O_NONBLOCK) for ($client, $out);
  my $up = { from => $client, to => $out, held => "", is_up => 1 };
  my $down = { from => $out, to => $client, held => "", other => $up };
  $up->{other} = $down;
  ($ways{fileno($client)}, $ways{fileno($out)}) = ($up, $down);
  $pairs += 1;
}

sub end_pair {
  my ($way) = @_;
  my $other = $way->{other};
  delete $ways{fileno($_->{from})} for ($way, $other);
  close($_->{from}) for ($way, $other);
  delete $_->{other} for ($way, $other);
  $pairs -= 1;
}

sub is_early { return $!{EAGAIN} || $!{EINTR} }

sub carry_in {
  my ($way) = @_;
  my $count = sysread($way->{from}, $way->{held}, $ROOM);
  return if !defined $count && is_early();
  $way->{ended} = 1 unless $count;
  $way->{held} = "" if $way->{is_deaf} || !$count;
}

# False when nobody is left to carry for.
sub carry_out {
  my ($way) = @_;
  my $count = syswrite($way->{to}, $way->{held});
  if (defined $count) { substr($way->{held}, 0, $count, ""); return 1 }
  return 1 if is_early();
  # The proxy takes no more: what the program still sends is read, so that the proxy's last words are not lost to a reset.
  ($way->{is_deaf}, $way->{held}) = (1, "");
  return $way->{is_up};
}

sub carry {
  my ($way, $is_readable) = @_;
  carry_in($way) if $is_readable && !length $way->{held};
  if (length $way->{held}) { return end_pair($way) unless carry_out($way) }
  return if !$way->{ended} || length $way->{held};
  shutdown($way->{to}, 1) unless $way->{is_done};
  $way->{is_done} = 1;
  end_pair($way) if $way->{other}{is_done};
}

while (1) {
  my ($readable, $writable) = ("", "");
  vec($readable, fileno($listener), 1) = 1 if $pairs < $most;
  for my $way (values %ways) {
    if (length $way->{held}) { vec($writable, fileno($way->{to}), 1) = 1 }
    elsif (!$way->{ended}) { vec($readable, fileno($way->{from}), 1) = 1 }
  }
  next if select($readable, $writable, undef, undef) < 0;
  for my $number (keys %ways) {
    # The other way may have ended both.
    my $way = $ways{$number} or next;
    next if $way->{is_done};
    carry($way, vec($readable, $number, 1)) if vec($readable, $number, 1) || length $way->{held};
  }
  add_pair() if vec($readable, fileno($listener), 1);
}
