"""Every limit of the protocol in one place, each with its reason."""

KIB = 1024
MIB = 1024 * KIB

# --- HELLO ------------------------------------------------------------------------------------

#: How far behind a login banner the magic is searched. Banners and motd noise seen in the field are
#: a few KiB; a shell that prints without end must be given up, not read for ever.
HELLO_SEARCH_BYTES = 64 * KIB

#: Longest HELLO body. It has 56 bytes and a sentence; room for later fields.
HELLO_BODY_BYTES = 1024

#: Longest sentence in a HELLO or GOODBYE: one line for a person.
SENTENCE_BYTES = 400

# --- frames -----------------------------------------------------------------------------------

#: Largest payload of one DATA frame. Only lanes of 4 Gbit/s and more get as large ones (the pacer
#: makes them as long as what passes in 2 ms), and those need them: each frame costs us some 30 us.
DATA_BYTES = 1 * MIB

#: Largest datagram: what UDP over IPv4 or IPv6 can carry.
DATAGRAM_BYTES = 65535

#: What stands before it at most: what opens a flow names its destination, by up to 255 bytes.
DATAGRAM_HEAD_BYTES = 512

#: Largest body of any other frame. OPEN has a host name of up to 255 bytes.
CONTROL_BYTES = 1024

# --- streams and windows ----------------------------------------------------------------------

#: Credit that every stream has from its first byte, whatever happens: what a sender of TCP may send
#: at once (RFC 6928: ten segments). 2,000 stopped readers hold 32 MiB of it, all that may be open
#: 512 MiB.
LEAST_WINDOW_BYTES = 16 * KIB

#: Credit that an opener gives with OPEN while there are places for it, and that a stream gets which
#: needs more than the least. Fills 20 Mbit/s at 100 ms before the first answer.
INITIAL_WINDOW_BYTES = 256 * KIB

#: What one stream's window may grow to: 600 Mbit/s at 100 ms need 7.5 MB, doubled for bursts. What
#: all of them may have together is the ladder's affair (windows).
MAX_WINDOW_BYTES = 16 * MIB

#: What one stream may have queued unsent, at least; on a lane of large frames SEND_QUEUE_FRAMES of
#: them are shared by all that have bulk. That keeps it busy while the next is read; more would only
#: hide the backlog from the kernel's own flow control.
SEND_QUEUE_BYTES = 512 * KIB
SEND_QUEUE_FRAMES = 2

#: Payloads that one stream may have queued unsent. A program that writes single bytes would cost
#: us some 300 bytes for each of them; here its backlog stays in the kernel, which joins them.
SEND_QUEUE_PAYLOADS = 1024

#: What all streams of a session may have queued unsent, ENTRY_BYTES for each payload included. Each
#: may have an eighth of what is left of it, half while nothing leaves, but always
#: LEAST_QUEUE_BYTES.
SESSION_QUEUE_BYTES = 32 * MIB
LEAST_QUEUE_BYTES = 16 * KIB

#: How long no lane has been answered when nothing leaves. Round trips and queues are shorter, and
#: a peer notices a lost link no sooner.
STALL_S = 5.0

#: What a stream may have queued beyond its credit when its reader has granted none for STUCK_S: as
#: much as a kernel buffers for a program that has written all and hung up (tcp(7), tcp_wmem). When
#: all of it has left, that kernel need not fear any more that nobody will ever take it.
READ_AHEAD_BYTES = 4 * MIB
STUCK_S = 20.0

#: Early pieces that one receiver keeps: each costs some 300 bytes besides its own. Lanes reorder by
#: whole frames and neighbours are joined, so a real peer needs a few dozen.
EARLY_PIECES = 1024

#: Early pieces that all receivers of a session keep: 20 MB besides their bytes. What four lanes
#: bring while a fifth is silent is a few thousand frames.
EARLY_PIECES_ALL = 64 * 1024

#: Neighbouring early pieces are joined up to this size, so that a full window behind one missing
#: frame is at most 2 x 16 MiB / 64 KiB = 512 pieces, whatever they arrived in.
EARLY_JOIN_BYTES = 64 * KIB

#: Streams that one side may have open at once. Descriptors end first nearly everywhere.
MAX_STREAMS = 32768

#: How far apart stream numbers may arrive when lanes overtake each other.
STREAM_GAP = 65536

# --- lanes ------------------------------------------------------------------------------------

#: Bytes that may be on a lane without acknowledgement. One ssh channel has a window of 2 MiB and
#: the kernel's socket buffers hold a few more; beyond that a frame waits no matter where.
LANE_IN_FLIGHT_BYTES = 8 * MIB

#: What sparse streams may have on a lane beyond what bulk may: a keystroke, a request and its
#: answer need not wait for the limit, and are too few to make a queue.
SPARSE_RESERVE_BYTES = 32 * KIB

#: A frame of a sparse stream or flow up to this size, a keystroke or a word, is sent over two lanes
#: where there are several: it fits into one segment of TCP.
DUPLICATE_BYTES = 1400

#: Duplicates that may wait for a lane. The oldest are dropped: in a full pipe they are late anyway.
MAX_DUPLICATES = 64

#: Frames that may be on a lane without acknowledgement: each costs us some 300 bytes until then.
#: 160,000 small messages a second at 100 ms, more than Python can cut.
LANE_IN_FLIGHT_FRAMES = 16384

#: Control frames that may wait for a lane: the answers to all streams that a peer may have, thrice.
#: A peer that goes on asking and does not read the answers is given up.
CONTROL_QUEUE_FRAMES = 4 * MAX_STREAMS

#: The bytes after which an acknowledgement leaves at the latest ...
ACK_EVERY_BYTES = 1 * MIB

#: ... and the time, whichever comes first. It says how long it was held, so that round-trip
#: times stay exact. The sender's pacing is as smooth as its acknowledgements: this is the time that
#: one frame takes on the link.
ACK_DELAY_S = 0.002

#: The same with bulk of our own to send: an acknowledgement may wait for a frame of it. Alone it
#: costs a packet, five times its own size, and that on a link that is full.
ACK_DELAY_BUSY_S = 0.008

#: What one transmit call hands out at most: one writev of a full pipe.
TRANSMIT_BYTES = 1 * MIB

#: Buffers in one writev. Linux' IOV_MAX is 1024.
TRANSMIT_BUFFERS = 512

#: Lanes of a session at once. Clients open four.
MAX_LANES = 64

#: Longest that an agent outlives its last lane, whatever its client asks for: a week.
MAX_GRACE_S = 7 * 24 * 3600

#: Numbers of dead lanes that either side remembers, the newest: the client until somebody can be
#: told, the agent because one that is still on its way would be a lane that nobody listens to. The
#: client has one or a few on their way, and uses a number again only after 65,535 others.
DEAD_LANES = 256

# --- datagrams --------------------------------------------------------------------------------

#: Datagrams that may wait for a lane, all together; the flows lose their oldest in turn.
DATAGRAM_QUEUE_BYTES = 4 * MIB

#: Datagrams of one flow that may wait for a lane; the oldest are dropped first. Mostly they become
#: too old before: 30,000 small ones a second are 1.4 MB in 100 ms, ENTRY_BYTES included, and a
#: process may be kept waiting for a part of that.
FLOW_QUEUE_BYTES = 2 * MIB

#: What a flow may send before others have their turn: a datagram of Ethernet's size (RFC 8290,
#: 5.2.4, whose scheme this is).
FLOW_QUANTUM_BYTES = 1514

#: Flows that one side may have opened and not ended. A scan or a large swarm has ten thousand; each
#: costs us less than 2 KiB.
MAX_FLOWS = 16384

#: Copies of a datagram that differ by as many serials are told apart from new ones: what two lanes
#: may be apart, of a flow that sends little.
SERIALS = 64

#: What an entry of a queue costs us besides its payload: a tuple, numbers, a few references. It is
#: counted with the bytes wherever those bound a queue, or empty entries would have no bound.
ENTRY_BYTES = 256

#: The age from which on a question that waits is worth less than the place it takes: resolvers are
#: asked again after a second.
DATAGRAM_AGE_S = 0.5

#: The same of all other datagrams: this, or so many of the path's round trips. Voice, video and
#: games have given up by then, and what controls its own rate takes a longer queue for a slower
#: path.
FLOW_AGE_S, FLOW_AGE_RTTS = 0.1, 2.0

#: The part of SPARSE_RESERVE_BYTES that datagrams of flows that send little may take before streams
#: that do.
DATAGRAM_RESERVE_BYTES = 16 * KIB

#: A datagram up to this size is copied behind its head: that costs less than a buffer of its own in
#: the writev.
JOINED_BYTES = 2048
