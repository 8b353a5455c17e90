package iperf3

// Result is the document of `iperf3 -J`. It marshals to it, and unmarshals from iperf3's.
type Result struct {
	Start     Start      `json:"start"`
	Intervals []Interval `json:"intervals"`
	End       End        `json:"end"`
	Title     string     `json:"title,omitempty"`
	ExtraData string     `json:"extra_data,omitempty"`
	Error     string     `json:"error,omitempty"` // why the test ended early

	ServerOutputText string `json:"server_output_text,omitempty"` // of Params.ServerOutput
	ServerOutputJSON any    `json:"server_output_json,omitempty"`

	server bool // as the server saw it
}

// Start is what is known when a test starts.
type Start struct {
	Connected     []Connected `json:"connected"`
	Version       string      `json:"version"`
	SystemInfo    string      `json:"system_info"`
	Timestamp     Timestamp   `json:"timestamp"`
	ConnectingTo  *Endpoint   `json:"connecting_to,omitempty"`       // of a client
	Accepted      *Endpoint   `json:"accepted_connection,omitempty"` // of a server
	Cookie        string      `json:"cookie"`
	DefaultMSS    int         `json:"tcp_mss_default,omitempty"`
	TargetBitrate int64       `json:"target_bitrate"`
	SocketBuffer  int         `json:"sock_bufsize"`
	SendBuffer    int         `json:"sndbuf_actual,omitempty"` // where the stack tells
	ReceiveBuffer int         `json:"rcvbuf_actual,omitempty"`
	TestStart     TestStart   `json:"test_start"`
}

// Connected is a stream's connection.
type Connected struct {
	Socket     int    `json:"socket"` // the stream's number, which the other parts use too
	LocalHost  string `json:"local_host"`
	LocalPort  int    `json:"local_port"`
	RemoteHost string `json:"remote_host"`
	RemotePort int    `json:"remote_port"`
}

// Timestamp is the time of day.
type Timestamp struct {
	Time    string `json:"time"`
	Seconds int64  `json:"timesecs"`
}

// Endpoint is a host and a port.
type Endpoint struct {
	Host string `json:"host"`
	Port int    `json:"port"`
}

// TestStart repeats the parameters. Times are seconds.
type TestStart struct {
	Protocol      string  `json:"protocol"` // "TCP" or "UDP"
	Streams       int     `json:"num_streams"`
	Length        int     `json:"blksize"`
	Omit          int     `json:"omit"`
	Duration      float64 `json:"duration"`
	Bytes         int64   `json:"bytes"`
	Blocks        int64   `json:"blocks"`
	Reverse       int     `json:"reverse"`
	TOS           int     `json:"tos"`
	TargetBitrate int64   `json:"target_bitrate"`
	Bidir         int     `json:"bidir,omitempty"`
}

// Interval is what happened between two reports. Sum is of the streams that the client sends on, if there are any.
type Interval struct {
	Streams         []Counts `json:"streams"`
	Sum             Counts   `json:"sum"`
	SumBidirReverse *Counts  `json:"sum_bidir_reverse,omitempty"` // of the streams that the server sends on, in a bidirectional test

	server bool // as the server saw it
}

// Counts are a stream's figures, or those of several streams together. Times are seconds since the start of the test, or since the end of
// the time that is omitted. What is nil is not known, or makes no sense: retransmissions of a receiver, jitter of a sender.
type Counts struct {
	Socket        *int    `json:"socket,omitempty"` // nil in sums
	Start         float64 `json:"start"`
	End           float64 `json:"end"`
	Seconds       float64 `json:"seconds"`
	Bytes         int64   `json:"bytes"`
	BitsPerSecond float64 `json:"bits_per_second"`

	// Of the sender of a TCP stream.
	Retransmits *int64 `json:"retransmits,omitempty"`
	*TCPInfo
	*TCPExtremes

	// Of UDP. Packets are those the sender has sent, or those a receiver knows of, with the lost ones.
	Packets *int64 `json:"packets,omitempty"`
	*Reception

	Omitted *bool `json:"omitted,omitempty"` // of an interval: whether it does not count
	Sender  bool  `json:"sender"`            // whether this end sends
}

// TCPInfo is how a sending TCP connection stood at the end of an interval.
type TCPInfo struct {
	CongestionWindow int64 `json:"snd_cwnd"` // bytes
	SendWindow       int64 `json:"snd_wnd"`  // bytes
	RTT              int64 `json:"rtt"`      // microseconds
	RTTVariance      int64 `json:"rttvar"`   // microseconds
	PathMTU          int64 `json:"pmtu"`
}

// TCPExtremes are a sending TCP connection's over the test, as sampled once per interval.
type TCPExtremes struct {
	MaxCongestionWindow int64 `json:"max_snd_cwnd"`
	MaxSendWindow       int64 `json:"max_snd_wnd"`
	MaxRTT              int64 `json:"max_rtt"`
	MinRTT              int64 `json:"min_rtt"`
	MeanRTT             int64 `json:"mean_rtt"`
}

// Reception is what the receiver of datagrams makes of their numbers and times.
type Reception struct {
	Jitter      float64 `json:"jitter_ms"` // RFC 1889 section 6.3.1
	Lost        int64   `json:"lost_packets"`
	LostPercent float64 `json:"lost_percent"`
	OutOfOrder  *int64  `json:"out_of_order,omitempty"` // of one stream, over the test
}

// End is the summary. SumSent is what the senders count and SumReceived what the receivers do. In a bidirectional test those are of the
// streams that the client sends on, and the others have their own.
type End struct {
	Streams []StreamEnd `json:"streams"`

	Sum                     *Counts `json:"sum,omitempty"` // UDP only
	SumSent                 Counts  `json:"sum_sent"`
	SumReceived             Counts  `json:"sum_received"`
	SumBidirReverse         *Counts `json:"sum_bidir_reverse,omitempty"` // UDP only
	SumSentBidirReverse     *Counts `json:"sum_sent_bidir_reverse,omitempty"`
	SumReceivedBidirReverse *Counts `json:"sum_received_bidir_reverse,omitempty"`

	CPU                CPU    `json:"cpu_utilization_percent"`
	SenderCongestion   string `json:"sender_tcp_congestion,omitempty"`
	ReceiverCongestion string `json:"receiver_tcp_congestion,omitempty"`
}

// StreamEnd is the summary of a stream: Sender and Receiver for TCP, UDP for UDP.
type StreamEnd struct {
	Sender   *Counts `json:"sender,omitempty"`
	Receiver *Counts `json:"receiver,omitempty"`
	UDP      *Counts `json:"udp,omitempty"`

	received *Counts // of UDP: what its JSON has no place for
}

// CPU is the time of the processes at both ends, in percent of one core.
type CPU struct {
	HostTotal    float64 `json:"host_total"`
	HostUser     float64 `json:"host_user"`
	HostSystem   float64 `json:"host_system"`
	RemoteTotal  float64 `json:"remote_total"`
	RemoteUser   float64 `json:"remote_user"`
	RemoteSystem float64 `json:"remote_system"`
}
