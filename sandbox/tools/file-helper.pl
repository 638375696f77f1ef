# Runs inside the sandbox, with /work as its world; started as `perl -e <this text> <action> <arguments…>`. The arguments come from a
# model: they are data here, never code. What it prints is read by file-helper.ts. Exit 3: an error to be told, on stderr.
# No modules: they would double the time to start.
use strict; use warnings;
$SIG{XFSZ} = 'IGNORE';
umask 022;
binmode STDIN; binmode STDOUT;
my ($O_NONBLOCK, $O_NOCTTY, $O_WRONLY, $O_CREAT, $O_EXCL) = (04000, 0400, 01, 0100, 0200); # alike on x86_64 and arm64

sub fail { print STDERR "$_[0]\n"; exit 3 }
sub inside { my $path = shift; return $path eq '/work' || $path =~ m{\A/work/}s }

# Why the last call failed (%! would load a module).
sub refusal {
  my $number = $! + 0;
  return $number == 2 ? "does not exist" : $number == 6 ? "is not an ordinary file" : lcfirst "$!"; # ENOENT, ENXIO
}

# Opens an ordinary file of /work, whatever links and FIFOs lie around: opened first, judged by the descriptor.
sub open_inside {
  my ($path) = @_;
  sysopen(my $file, $path, $O_NONBLOCK | $O_NOCTTY) or fail(refusal());
  my $real = readlink('/proc/self/fd/' . fileno $file);
  fail("leads outside the work directory") unless defined $real && inside($real);
  stat $file;
  fail("is a directory") if -d _;
  fail("is not an ordinary file") unless -f _;
  return ($file, $real);
}

sub read_all {
  my ($file, $most) = @_;
  my $text = '';
  while (1) {
    my $got = sysread($file, $text, 65536, length $text);
    fail("cannot be read: $!") unless defined $got;
    last if $got == 0;
    fail("is larger than $most bytes") if length $text > $most;
  }
  return $text;
}

# Steps down into the directory, making what is missing, and makes sure that it is still in /work.
sub enter_parent {
  my ($path) = @_;
  my @parts = split m{/}, $path;
  my $name = pop @parts;
  chdir '/' or fail("$!");
  for my $part (grep { length } @parts) {
    mkdir $part, 0755 unless -e $part;
    chdir $part or fail("cannot be written: $part: " . lcfirst "$!");
  }
  my $here = readlink '/proc/self/cwd';
  fail("leads outside the work directory") unless defined $here && inside($here);
  return $name;
}

# A new file beside the old one, then a rename: a reader sees the old text or the new one, never half of it.
sub replace_file {
  my ($path, $text) = @_;
  my $existed = 0;
  my $mode = 0644;
  if (-l $path || -e _) {
    my ($file, $real) = open_inside($path);
    ($existed, $mode, $path) = (1, (stat $file)[2] & 0777, $real);
  }
  my $name = enter_parent($path);
  my $temporary = ".openclaw-$$-" . int rand 1e9;
  sysopen(my $file, $temporary, $O_WRONLY | $O_CREAT | $O_EXCL, $mode) or fail("cannot be written: " . lcfirst "$!");
  my $done = 0;
  while ($done < length $text) {
    my $wrote = syswrite($file, $text, 65536, $done);
    if (!defined $wrote) { my $why = "$!"; unlink $temporary; fail("cannot be written: " . lcfirst $why) }
    $done += $wrote;
  }
  chmod $mode, $file;
  if (!close($file) || !rename($temporary, $name)) { my $why = "$!"; unlink $temporary; fail("cannot be written: " . lcfirst $why) }
  return $existed;
}

sub stdin_exactly {
  my ($length) = @_;
  my $text = read_all(\*STDIN, $length);
  fail("was not written: the text arrived cut") unless length $text == $length;
  return $text;
}

sub do_write {
  my ($path, $length) = @_;
  print replace_file($path, stdin_exactly($length)) ? "replaced\n" : "created\n";
}

sub do_edit {
  my ($path, $old_length, $new_length, $all, $most) = @_;
  my $both = stdin_exactly($old_length + $new_length);
  my ($old, $new) = (substr($both, 0, $old_length), substr($both, $old_length));
  my ($file, $real) = open_inside($path);
  my $text = read_all($file, $most);
  my @at;
  for (my $from = 0; ($from = index $text, $old, $from) >= 0; $from += length $old) { push @at, $from }
  if (@at == 0 || (@at > 1 && !$all)) { print "found ", scalar @at, " 0\n"; return }
  my $line = 1 + (substr($text, 0, $at[0]) =~ tr/\n//);
  my ($result, $from) = ('', 0);
  for my $start (@at) { $result .= substr($text, $from, $start - $from) . $new; $from = $start + length $old }
  replace_file($real, $result . substr $text, $from);
  print "found ", scalar @at, " $line\n";
}

# First line: size, number of the first line given, 1 when more follows, 1 when it looks binary, 1 when the last line is cut. Then the text.
sub do_read {
  my ($path, $offset, $limit, $most) = @_;
  my ($file) = open_inside($path);
  my $size = -s $file;
  my ($line, $out, $more, $cut, $first) = (1, '', 0, 0, 1);
  CHUNK: while (1) {
    my $got = sysread($file, my $chunk, 65536);
    fail("cannot be read: $!") unless defined $got;
    last if $got == 0;
    if ($first && index($chunk, "\0") >= 0) { print "$size 1 0 1 0\n"; return }
    $first = 0;
    if ($line < $offset) {
      my $at = 0;
      while ($line < $offset) { my $newline = index $chunk, "\n", $at; next CHUNK if $newline < 0; $at = $newline + 1; $line++ }
      $chunk = substr $chunk, $at;
    }
    $out .= $chunk;
    last if length $out > $most || ($out =~ tr/\n//) > $limit;
  }
  if ($line < $offset) { print "$size 0 0 0 0\n"; return }
  my ($end, $lines) = (0, 0);
  while ($lines < $limit && $end < length $out) { my $newline = index $out, "\n", $end; $end = $newline < 0 ? length $out : $newline + 1; $lines++ }
  if ($end > $most) { # whole lines only, unless one alone is too long
    my $newline = rindex $out, "\n", $most - 1;
    ($end, $cut) = $newline < 0 ? ($most, 1) : ($newline + 1, 0);
  }
  $more = 1 if $end < length $out || sysread($file, my $rest, 1);
  print "$size $offset $more 0 $cut\n", substr $out, 0, $end;
}

# One record per entry, ended by NUL: type, size, path from the directory that was asked for. A last record `+` says that there are more.
sub do_list {
  my ($path, $recursive, $most) = @_;
  chdir $path or fail(refusal());
  my $here = readlink '/proc/self/cwd';
  fail("leads outside the work directory") unless defined $here && inside($here);
  my ($given, @open) = (0, '');
  while (@open) {
    my $in = shift @open;
    my $directory;
    if (!opendir $directory, length $in ? $in : '.') { print "! 0 $in\0"; next }
    my ($seen, @names) = (0);
    while (defined(my $name = readdir $directory)) {
      next if $name eq '.' || $name eq '..';
      push @names, $name;
      last if @names > 20000;
    }
    my @below;
    for my $name (sort @names) {
      if ($given++ >= $most) { print "+ 0 \0"; return }
      my $relative = length $in ? "$in/$name" : $name;
      lstat $relative;
      my $type = -l _ ? 'l' : -d _ ? 'd' : -f _ ? 'f' : 'o';
      print $type, ' ', (-f _ ? -s _ : 0), ' ', $relative, "\0";
      push @below, $relative if $type eq 'd' && $recursive;
    }
    unshift @open, @below;
  }
}

my $action = shift @ARGV;
my %actions = (write => \&do_write, edit => \&do_edit, read => \&do_read, list => \&do_list);
$actions{$action}->(@ARGV);
