package nat

// State is how far a flow has come; it decides whether the flow may be evicted and, without a TCP state, its timeout.
type State uint8

//	first answer / handshake done            both ends done, or a RST
//
// new ------------------------------> assured ------------------------------> closing
//
//	\__________________________________________________________________________^
const (
	StateNew     State = iota // seen from one side only: a SYN being dialled, UDP without an answer
	StateAssured              // both sides have spoken: the last to be evicted for a newer flow
	StateClosing              // over, kept so that late packets are recognised
)

func (s State) String() string { return [...]string{"new", "assured", "closing"}[s] }

// TCPState is where a TCP connection stands, in netfilter's terms.
type TCPState uint8

const (
	TCPNone        TCPState = iota // not TCP, or not followed
	TCPSynSent                     // SYN seen from the opener
	TCPSynRecv                     // SYN and ACK seen from the other side
	TCPEstablished                 // handshake done
	TCPFinWait                     // FIN seen from one side
	TCPCloseWait                   // and acknowledged by the other
	TCPLastAck                     // FIN seen from both
	TCPTimeWait                    // and both acknowledged
	TCPClose                       // RST seen
	TCPSynSent2                    // SYN seen from both sides: simultaneous open
)

var tcpNames = [...]string{
	"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2",
}

func (s TCPState) String() string { return tcpNames[s] }

// state is the flow state that goes with a TCP state.
func (s TCPState) state() State {
	switch s {
	case TCPEstablished, TCPFinWait, TCPCloseWait, TCPLastAck:
		return StateAssured
	case TCPTimeWait, TCPClose:
		return StateClosing
	}
	return StateNew
}
