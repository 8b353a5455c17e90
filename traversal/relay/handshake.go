package relay

import (
	"errors"
	"fmt"
	"io"

	"culvert.dev/culvert/traversal/relay/derp"
)

// maxEarlyFrames bounds how many frames may come before the ServerInfo that ends the handshake.
const maxEarlyFrames = 32

// handshake exchanges keys: the relay's first frame is its key, then it hears ours, then it accepts us by its ServerInfo. A relay
// that refuses a key just closes the connection.
func (c *Conn) handshake(s *session) error {
	t, payload, err := c.frames.Next()
	if err != nil {
		return early(err, "before it said its key")
	}
	if t != derp.FrameServerKey {
		return fmt.Errorf("the first frame is %v, want %v", t, derp.FrameServerKey)
	}
	key, err := derp.ParseServerKey(payload)
	if err != nil {
		return err
	}
	if s.hasMeta && key != s.meta {
		return fmt.Errorf("the relay's key is %s, but its certificate says %s: somebody may sit in between", key.Short(), s.meta.Short())
	}
	c.info.Key = key
	if s.info.Transport != TransportFastStart { // else it has been sent with the request
		hello, err := s.clientInfo(key)
		if err != nil {
			return err
		}
		if _, err := c.stream.Write(hello); err != nil {
			return early(err, "before it had read our key")
		}
	}
	for range maxEarlyFrames {
		t, payload, err := c.frames.Next()
		if err != nil {
			return early(err, "after it was told our key: it may not admit it")
		}
		if t == derp.FrameServerInfo {
			return c.serverInfo(payload)
		}
	}
	return fmt.Errorf("no %v among the first %d frames", derp.FrameServerInfo, maxEarlyFrames)
}

// serverInfo takes over what the relay says of itself.
func (c *Conn) serverInfo(payload []byte) error {
	info, err := derp.OpenServerInfo(c.key, c.info.Key, payload)
	if err != nil {
		return err
	}
	c.out.limit(info.TokenBucketBytesPerSecond, info.TokenBucketBytesBurst)
	return nil
}

// early says what it means that the stream ended.
func early(err error, when string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("closed by the relay %s", when)
	}
	return err
}
