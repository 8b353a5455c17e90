package iperf3

import (
	"errors"
	"fmt"
	"syscall"
)

// What a caller may want to tell apart. The texts are iperf3's.
var (
	ErrInterrupted      = errors.New("interrupt - the client has terminated")
	ErrClientTerminated = errors.New("the client has terminated")
	ErrServerTerminated = errors.New("the server has terminated")
	ErrBusy             = errors.New("the server is busy running a test. try again later")
	ErrIdle             = errors.New("nothing was received for too long")
)

// Numbers that go with SERVER_ERROR; the text is what the number means.
const (
	codeDuration      = 5
	codeStreams       = 6
	codeLength        = 7
	codeWindow        = 8
	codeInterval      = 9
	codeMSS           = 10
	codeOmit          = 12
	codeUnsupported   = 13
	codeBurst         = 15
	codeEndConditions = 16
	codeSCTP          = 18
	codeUDPLength     = 20
	codeTOS           = 21
	codeTotalRate     = 27
	codeParams        = 114
	codeStreamListen  = 202
)

var codeTexts = map[int]string{
	codeDuration: "the test is too long", codeStreams: "too many parallel streams", codeLength: "the block size is too large",
	codeWindow: "the socket buffer size is too large", codeMSS: "the MSS is too large", codeOmit: "bad omit time",
	codeUnsupported: "an option is not supported", codeBurst: "bad burst count", codeEndConditions: "bad end condition",
	codeSCTP: "no SCTP", codeUDPLength: "the block size is not one for UDP", codeTOS: "bad TOS value",
	codeTotalRate: "the rate is above the server's limit", codeParams: "bad parameters",
	142: "not authorised", codeStreamListen: "the server cannot listen for streams",
}

// ServerError is what a server says when it will not do a test.
type ServerError struct {
	Code  int // iperf3's
	Errno syscall.Errno
}

// Error implements error.
func (e *ServerError) Error() string {
	text := codeTexts[e.Code]
	if text == "" {
		text = fmt.Sprintf("error %d", e.Code)
	}
	if e.Errno != 0 {
		return fmt.Sprintf("the server refuses: %s: %v", text, e.Errno)
	}
	return "the server refuses: " + text
}

// refusal is an error in parameters that a server tells its client by a number.
type refusal struct {
	code int
	text string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

func newServerError(code, errno uint32) *ServerError {
	return &ServerError{Code: int(int32(code)), Errno: syscall.Errno(errno)}
}
