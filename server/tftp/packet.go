package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Opcodes (RFC 1350, section 5; OACK: RFC 2347).
const (
	opRRQ   = 1
	opWRQ   = 2
	opDATA  = 3
	opACK   = 4
	opERROR = 5
	opOACK  = 6
)

// Error codes (RFC 1350, appendix; 8: RFC 2347).
const (
	codeText       = 0 // not defined, see the message
	codeNotFound   = 1
	codeAccess     = 2
	codeIllegal    = 4
	codeUnknownTID = 5
	codeOptions    = 8
)

// maxRequest is the longest request, in bytes (RFC 2347).
const maxRequest = 512

// request is an RRQ taken apart. Of its options those that we know and whose
// values are in range are set; order holds them as they came, because an OACK
// is easiest on clients when it has them in their order.
type request struct {
	name     string
	blksize  int    // 8 to 65464 (RFC 2348); 0: not asked for
	tsize    bool   // (RFC 2349)
	timeout  int    // 1 to 255 s (RFC 2349); 0: not asked for
	window   int    // 1 to 65535 blocks (RFC 7440); 0: not asked for
	rollover int    // block number that follows 65535, 0 or 1 (tftp-hpa's); -1: not asked for
	order    []byte // of optBlksize ...
}

// The options by number.
const (
	optBlksize = iota
	optTsize
	optTimeout
	optWindow
	optRollover
)

var optNames = [...]string{"blksize", "tsize", "timeout", "windowsize", "rollover"}

// refusal is an error that is told to the client, with its code.
type refusal struct {
	code uint16
	text string
}

func (r *refusal) Error() string { return r.text }

var (
	errWrite    = &refusal{codeAccess, "files are only read here"}
	errNetascii = &refusal{codeIllegal, "only mode octet (binary) is served"}
	errLong     = &refusal{codeIllegal, "request longer than 512 bytes"}
	errForm     = &refusal{codeIllegal, "request without file name or mode"}
	errMissing  = &refusal{codeNotFound, "file not found"}
	errServer   = &refusal{codeText, "the server cannot give this file; its log says why"}
	errEnding   = &refusal{codeText, "the server ends"}
)

// errNoRequest: the packet is none, and gets no answer: answers to stray
// packets could go round between two servers for ever.
var errNoRequest = errors.New("no request")

// parseRequest takes a packet to port 69 apart. The error is a *refusal, for
// the client, or errNoRequest.
func parseRequest(b []byte) (q request, err error) {
	if len(b) < 2 {
		return q, errNoRequest
	}
	switch binary.BigEndian.Uint16(b) {
	case opRRQ:
	case opWRQ:
		return q, errWrite
	default:
		return q, errNoRequest
	}
	if len(b) > maxRequest {
		return q, errLong
	}
	rest := b[2:]
	name, rest, ok := bytes.Cut(rest, []byte{0})
	if !ok || len(name) == 0 {
		return q, errForm
	}
	mode, rest, ok := bytes.Cut(rest, []byte{0})
	if !ok {
		return q, errForm
	}
	switch strings.ToLower(string(mode)) {
	case "octet":
	case "netascii", "mail":
		return q, errNetascii
	default:
		return q, errForm
	}
	q.name, q.rollover = string(name), -1
	for len(rest) > 0 {
		var key, value []byte
		key, rest, ok = bytes.Cut(rest, []byte{0})
		if !ok {
			break // padding or cut off: what came before it counts
		}
		if value, rest, ok = bytes.Cut(rest, []byte{0}); !ok {
			break
		}
		q.option(string(key), string(value))
	}
	return q, nil
}

// option takes one in. Unknown ones, those out of range and repeated ones are
// as if they were not there (RFC 2347).
func (q *request) option(key, value string) {
	opt := -1
	for i, n := range optNames {
		if strings.EqualFold(key, n) {
			opt = i
		}
	}
	if opt < 0 || bytes.IndexByte(q.order, byte(opt)) >= 0 {
		return
	}
	n, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return
	}
	switch {
	case opt == optBlksize && n >= 8:
		q.blksize = int(min(n, 65464))
	case opt == optTsize:
		q.tsize = true
	case opt == optTimeout && n >= 1 && n <= 255:
		q.timeout = int(n)
	case opt == optWindow && n >= 1 && n <= 65535:
		q.window = int(n)
	case opt == optRollover && n <= 1:
		q.rollover = int(n)
	default:
		return
	}
	q.order = append(q.order, byte(opt))
}

// oack writes the answer to q's options; nil where there are none.
func (q *request) oack(blksize, window int, size int64) []byte {
	if len(q.order) == 0 {
		return nil
	}
	b := []byte{0, opOACK}
	for _, o := range q.order {
		v := [...]int64{int64(blksize), size, int64(q.timeout), int64(window), int64(q.rollover)}[o]
		b = append(append(b, optNames[o]...), 0)
		b = append(strconv.AppendInt(b, v, 10), 0)
	}
	return b
}

// errorPacket writes an ERROR.
func errorPacket(r *refusal) []byte {
	b := []byte{0, opERROR, byte(r.code >> 8), byte(r.code)}
	return append(append(b, r.text...), 0)
}

// parseError takes an ERROR apart.
func parseError(b []byte) (code uint16, text string) {
	if len(b) < 4 {
		return 0, ""
	}
	msg, _, _ := bytes.Cut(b[4:], []byte{0})
	return binary.BigEndian.Uint16(b[2:]), fmt.Sprintf("%.80q", msg)
}

// wire gives block n's number in its two bytes. After 65535 comes 0, or 1
// where the client asked for it.
func wire(n int64, toOne bool) uint16 {
	if toOne && n > 65535 {
		return uint16((n-1)%65535 + 1)
	}
	return uint16(n)
}
