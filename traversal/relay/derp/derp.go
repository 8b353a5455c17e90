// Package derp is the wire format of DERP version 2, the protocol that relays WireGuard datagrams between keys: frames, the
// boxes of the handshake, the names of the HTTP upgrade and the certificate that carries a relay's key. It holds no socket, no
// goroutine and no policy; package relayserver and the client in package relay have those.
//
// A frame is
//
//	offset 0  type, 1 byte
//	       1  length of the payload, 4 bytes, big endian
//	       5  payload
//
// Every connection starts with three frames:
//
//	server  ServerKey   8 bytes magic, 32 bytes key of the server, ignored rest
//	client  ClientInfo  32 bytes key of the client, 24 bytes nonce, box of JSON
//	server  ServerInfo  24 bytes nonce, box of JSON
//
// A box is NaCl's crypto_box (X25519, XSalsa20, Poly1305) from the sender's key to the receiver's, so that each side proves its
// key. Then follow, in any order:
//
//	SendPacket    client  32 bytes destination, data
//	RecvPacket    server  32 bytes source, data
//	KeepAlive     server  nothing; about once a minute
//	NotePreferred client  1 byte: 1 this relay is my home, 0 it is not
//	PeerGone      server  32 bytes key, 1 byte reason (GoneReason); without the reason: disconnected
//	Ping, Pong    both    8 bytes, echoed
//	Health        server  text of a problem; empty: none any more
//	Restarting    server  4 bytes ms until the client may connect again, 4 bytes ms for how long to try
//	PeerPresent, ForwardPacket, WatchConns, ClosePeer: between the servers of a mesh, which Culvert's is not part of
//
// Frames of unknown types are skipped. Functions are safe for concurrent use, a Reader belongs to one goroutine:
//
//	r := derp.NewReader(conn, derp.MaxServerFrame)
//	for {
//		t, payload, err := r.Next()
//		if err != nil {
//			return err
//		}
//		if t == derp.FrameRecvPacket && len(payload) >= derp.KeyLen {
//			deliver(wgkey.Public(payload[:derp.KeyLen]), payload[derp.KeyLen:])
//		}
//	}
package derp

import "fmt"

// Version is the version of the protocol: packets that a client receives name their source.
const Version = 2

// Magic opens the payload of a ServerKey frame.
const Magic = "DERP🔑"

// Sizes in bytes.
const (
	HeaderLen      = 5        // of a frame
	KeyLen         = 32       // of a public key in a frame
	MaxPacket      = 64 << 10 // of a packet, without the keys in front of it
	MaxServerFrame = 1 << 20  // the longest payload a client takes
	PingLen        = 8        // of what a Ping carries and a Pong returns
	maxPingLen     = 1000     // what a Ping may carry; only PingLen of it return
)

// Names of the HTTP upgrade by which a connection starts.
const (
	Path            = "/derp"
	UpgradeProtocol = "DERP"            // of the Upgrade header
	Subprotocol     = "derp"            // of WebSocket
	HeaderVersion   = "Derp-Version"    // in the answer
	HeaderKey       = "Derp-Public-Key" // in the answer, in hexadecimal
	HeaderFastStart = "Derp-Fast-Start" // in the request, "1": send no answer, begin with ServerKey
	HeaderIdealNode = "Ideal-Node"      // in the request: the server of the region that the client would rather have
)

// Type is the type of a frame.
type Type uint8

// Types of frames.
const (
	FrameServerKey     Type = 0x01
	FrameClientInfo    Type = 0x02
	FrameServerInfo    Type = 0x03
	FrameSendPacket    Type = 0x04
	FrameRecvPacket    Type = 0x05
	FrameKeepAlive     Type = 0x06
	FrameNotePreferred Type = 0x07
	FramePeerGone      Type = 0x08
	FramePeerPresent   Type = 0x09
	FrameForwardPacket Type = 0x0a
	FrameWatchConns    Type = 0x10
	FrameClosePeer     Type = 0x11
	FramePing          Type = 0x12
	FramePong          Type = 0x13
	FrameHealth        Type = 0x14
	FrameRestarting    Type = 0x15
)

// String returns the name, or the number of an unknown type.
func (t Type) String() string {
	switch t {
	case FrameServerKey:
		return "ServerKey"
	case FrameClientInfo:
		return "ClientInfo"
	case FrameServerInfo:
		return "ServerInfo"
	case FrameSendPacket:
		return "SendPacket"
	case FrameRecvPacket:
		return "RecvPacket"
	case FrameKeepAlive:
		return "KeepAlive"
	case FrameNotePreferred:
		return "NotePreferred"
	case FramePeerGone:
		return "PeerGone"
	case FramePeerPresent:
		return "PeerPresent"
	case FrameForwardPacket:
		return "ForwardPacket"
	case FrameWatchConns:
		return "WatchConns"
	case FrameClosePeer:
		return "ClosePeer"
	case FramePing:
		return "Ping"
	case FramePong:
		return "Pong"
	case FrameHealth:
		return "Health"
	case FrameRestarting:
		return "Restarting"
	}
	return fmt.Sprintf("frame 0x%02x", uint8(t))
}

// GoneReason says why a server reports a peer as gone.
type GoneReason uint8

// Reasons in a PeerGone frame.
const (
	GoneDisconnected GoneReason = 0 // it left
	GoneNotHere      GoneReason = 1 // it is not connected, so that a packet for it was dropped
)

// String names the reason in words.
func (r GoneReason) String() string {
	switch r {
	case GoneDisconnected:
		return "disconnected"
	case GoneNotHere:
		return "not here"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}
