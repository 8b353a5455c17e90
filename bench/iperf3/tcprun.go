package iperf3

// tcpSample is what the stack says about a connection that sends.
type tcpSample struct {
	TCPInfo
	retransmits int64 // since the start of the connection
}

// tcpRun follows a sending TCP connection through a test. It stays zero where the stack tells nothing.
type tcpRun struct {
	known      bool
	base, last int64 // retransmits
	now        tcpSample
	extremes   TCPExtremes
	rtts, n    int64
}

// begin takes the first sample.
func (r *tcpRun) begin(s *stream) {
	if !s.sender || s.conn == nil {
		return
	}
	if r.now, r.known = sampleTCP(s.conn); r.known {
		r.base, r.last = r.now.retransmits, r.now.retransmits
	}
}

// restart makes retransmissions count from now on.
func (r *tcpRun) restart(s *stream) {
	if r.sample(s) {
		r.base, r.last = r.now.retransmits, r.now.retransmits
	}
}

// sample reads the connection's state. It is false if there is none.
func (r *tcpRun) sample(s *stream) bool {
	if !r.known {
		return false
	}
	if now, ok := sampleTCP(s.conn); ok {
		r.now = now
	}
	return true
}

// interval samples, and returns the retransmissions since the last time; nil if that is not known.
func (r *tcpRun) interval(s *stream) (retransmits *int64, info *TCPInfo) {
	if !r.sample(s) {
		return nil, nil
	}
	n, i := r.now.retransmits-r.last, r.now.TCPInfo
	r.last = r.now.retransmits
	e := &r.extremes
	e.MaxCongestionWindow = max(e.MaxCongestionWindow, i.CongestionWindow)
	e.MaxSendWindow = max(e.MaxSendWindow, i.SendWindow)
	e.MaxRTT = max(e.MaxRTT, i.RTT)
	if r.n == 0 || i.RTT < e.MinRTT {
		e.MinRTT = i.RTT
	}
	r.n++
	r.rtts += i.RTT
	e.MeanRTT = r.rtts / r.n
	return &n, &i
}

// total is the retransmissions of the test; nil if they are not known.
func (r *tcpRun) total() *int64 {
	if !r.known {
		return nil
	}
	n := r.last - r.base
	return &n
}
