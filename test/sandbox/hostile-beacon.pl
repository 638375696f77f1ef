# A neighbour that offers everything a hostile program could reach for: files, sockets, segments, a server. What the place that it runs in
# refuses is left out. Says what it offers in the file `beacon.json` of its directory, removes what outlives a process when it is ended.
# Arguments: a word that all its names hold, the file that tells it to end.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
use Socket qw(AF_UNIX SOCK_STREAM pack_sockaddr_un);

$SIG{PIPE} = "IGNORE";
my ($marker, $end) = @ARGV;
my ($shm_file, $tmp_file, $abstract) = ("/dev/shm/$marker", "/tmp/$marker", "abstract-$marker");
my $key = unpack("%31C*", $marker) + 0x5f000000 + ($$ & 0xffff) * 0x100;

for my $file ($shm_file, $tmp_file, "beacon.secret") {
    open(my $handle, ">", $file) or next;
    print $handle "beacon\n";
}
open(my $kept, "<", "beacon.secret");
my ($segment, $queue, $semaphore) = (shmget($key, 4096, 0666 | 01000), msgget($key, 0666 | 01000), semget($key, 1, 0666 | 01000));

my $tcp = IO::Socket::INET->new(Listen => 64, LocalAddr => "127.0.0.1:0");
my $udp = IO::Socket::INET->new(Proto => "udp", LocalAddr => "127.0.0.1:0");
socket(my $named, AF_UNIX, SOCK_STREAM, 0);
unlink "beacon.sock";
bind($named, pack_sockaddr_un("beacon.sock")) and listen($named, 64) and chmod 0777, "beacon.sock";
socket(my $nameless, AF_UNIX, SOCK_STREAM, 0);
bind($nameless, pack("S a*", AF_UNIX, "\0$abstract")) and listen($nameless, 64);
unlink "beacon.fifo";
system("mkfifo", "beacon.fifo");
# Read and write, so that opening waits for nobody.
my $fifo;
open($fifo, "+<", "beacon.fifo") and syswrite($fifo, "hello" x 100);

open(my $report, ">", "beacon.part");
printf $report '{"pid":%d,"key":%d,"tcpPort":%d,"udpPort":%d,"abstractName":"%s","shmFile":"%s","tmpFile":"%s","marker":"%s"}',
    $$, $key, $tcp->sockport, $udp->sockport, $abstract, $shm_file, $tmp_file, $marker;
close $report;
rename "beacon.part", "beacon.json";

my $readable = IO::Select->new($tcp, $udp, $named, $nameless);
until (-e $end) {
    for my $socket ($readable->can_read(0.2)) {
        if ($socket == $udp) { $udp->recv(my $got, 9) ; $udp->send("hello"); next }
        accept(my $client, $socket) or next;
        syswrite($client, "hello");
    }
}
shmctl($segment, 0, 0) if defined $segment;
msgctl($queue, 0, 0) if defined $queue;
semctl($semaphore, 0, 0, 0) if defined $semaphore;
unlink $shm_file, $tmp_file;
