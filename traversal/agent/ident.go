package agent

import (
	"crypto/rand"
	"encoding/binary"
	"hash/maphash"

	"culvert.dev/culvert/traversal/check"
)

// idents makes the transaction ids of requests, and tells from an id that comes back which peer it was for, without a table that
// receivers and the engine would have to share:
//
//	offset 0  number of the peer, 4, XOR a keyed hash of the rest
//	       4  random, 8
//
// A made-up id names a number that no peer has, but for one in 2^32 times the number of peers. The key is of this process only.
// It is safe for concurrent use.
type idents struct{ seed maphash.Seed }

func newIdents() idents { return idents{maphash.MakeSeed()} }

func (s idents) mask(random []byte) uint32 { return uint32(maphash.Bytes(s.seed, random)) }

// next draws an id for a peer.
func (s idents) next(peer uint32) (id check.ID) {
	rand.Read(id[4:]) // does not fail
	binary.BigEndian.PutUint32(id[:], peer^s.mask(id[4:]))
	return id
}

// peer is the number in an id.
func (s idents) peer(id *check.ID) uint32 { return binary.BigEndian.Uint32(id[:]) ^ s.mask(id[4:]) }
