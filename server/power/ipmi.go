package power

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"

	"dsas"
)

type suite = types.CipherSuiteID

// suites are the cipher suites tried, best first (IPMI 2.0, table 22-20): 17
// is HMAC-SHA256 with AES, 3 HMAC-SHA1 with AES. All others either do not
// encrypt or do not prove who is who, and are never used. The BMC is not asked
// for its list first: it may be forged (the request is not authenticated), and
// some firmware gives a wrong one.
var suites = []suite{types.CipherSuiteID17, types.CipherSuiteID3}

const (
	// Each packet is sent up to three times, a second apart: BMCs are slow
	// to wake up and UDP loses. With two suites, a dead address costs 6 s.
	packetTimeout = time.Second
	packetRetries = 2
	closeTimeout  = 2 * time.Second
	maxPassword   = 20 // bytes, IPMI 2.0 section 22.30
)

// The chassis controls used (IPMI 2.0, section 28.3).
const (
	powerDown  = chassis.ChassisControlPowerDown
	powerUp    = chassis.ChassisControlPowerUp
	powerCycle = chassis.ChassisControlPowerCycle
	hardReset  = chassis.ChassisControlHardReset
)

// session is an RMCP+ session with one BMC.
type session struct {
	c   *client.Client
	log *slog.Logger
}

// connect opens a session with the suite that worked the last time, else with
// the first that does. t.busy is held.
func (t *target) connect(ctx context.Context, host string, port int, user, password string) (*session, error) {
	if len(password) > maxPassword {
		return nil, fmt.Errorf("its password has %d bytes; IPMI knows at most %d: %w", len(password), maxPassword, dsas.ErrInvalid)
	}
	try := suites
	if t.suite != 0 {
		try = []suite{t.suite}
	}
	var first error
	for _, id := range try {
		s, err := open(ctx, host, port, user, password, id)
		if err == nil {
			t.suite = id
			return s, nil
		}
		// Wrong credentials are wrong with any suite, and a second try may
		// lock the user out. Where nobody listens, nobody will.
		if errors.Is(err, ErrCredentials) || errors.Is(err, syscall.ECONNREFUSED) || ctx.Err() != nil {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	// A BMC that was replaced or updated may know another suite.
	t.suite = 0
	return nil, first
}

// open makes a session with one suite. It takes the library's steps by
// themselves, since its Connect loses the reason of a failure and starts a
// keep-alive that sessions as short as ours need not.
func open(ctx context.Context, host string, port int, user, password string, id suite) (*session, error) {
	if strings.Contains(host, ":") {
		host = "[" + host + "]" // the library joins host and port with a bare colon
	}
	c, err := client.NewClient(host, port, user, password)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", dsas.ErrInvalid, err)
	}
	// Operator is the least that may switch the power (appendix G).
	c = c.WithTimeout(packetTimeout).WithRetry(packetRetries).WithCipherSuiteID(id).
		WithMaxPrivilegeLevel(types.PrivilegeLevelOperator)
	s := &session{c: c}
	if err := s.setUp(ctx, id); err != nil {
		// With a dead context only the socket is closed: there is no
		// session to end.
		dead, cancel := context.WithCancel(context.Background())
		cancel()
		c.Close(dead)
		return nil, err
	}
	return s, nil
}

// setUp is IPMI 2.0 section 13.15 without its first step, which only asks
// whether the BMC knows IPMI 2.0: it tells so by its answer.
func (s *session) setUp(ctx context.Context, id suite) error {
	if _, err := s.c.OpenSession(ctx); err != nil {
		return explain(fmt.Sprintf("open a session with cipher suite %d", id), err)
	}
	if _, err := s.c.RAKPMessage1(ctx); err != nil {
		return explain("authenticate", err)
	}
	if _, err := s.c.RAKPMessage3(ctx); err != nil {
		return explain("authenticate", err)
	}
	if _, err := s.c.SetSessionPrivilegeLevel(ctx, types.PrivilegeLevelOperator); err != nil {
		return explain("act as operator", err)
	}
	return nil
}

// close ends the session; BMCs have few, and keep a forgotten one for a
// minute.
func (s *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := s.c.Close(ctx); err != nil {
		s.log.Debug("close session", "error", err)
	}
}

// explain says what failed in this package's terms.
func explain(what string, err error) error {
	var (
		status  *types.RmcpStatusError
		refusal *types.ResponseError
		netErr  net.Error
	)
	switch {
	case errors.Is(err, client.ErrRAKPAuthentication):
		return fmt.Errorf("%s: %w", what, ErrCredentials)
	case errors.As(err, &status):
		switch status.StatusCode() {
		case types.RmcpStatusCodeUnauthorizedName, types.RmcpStatusCodeInvalidNameLength,
			types.RmcpStatusCodeInvalidIntegrityCheckValue, types.RmcpStatusCodeUnauthorizedRoleOfPriLevel, types.RmcpStatusCodeInvalidRole:
			return fmt.Errorf("%s: %w (%s)", what, ErrCredentials, status.StatusCode())
		}
		return fmt.Errorf("%s: %w: %s", what, ErrRefused, status.StatusCode())
	case errors.As(err, &refusal):
		return fmt.Errorf("%s: %w: %w", what, ErrRefused, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %w: nobody listens at this address and port: %w", what, ErrNoAnswer, syscall.ECONNREFUSED)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return fmt.Errorf("%s: %w: is its address right, and IPMI over LAN switched on?", what, ErrNoAnswer)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (s *session) status(ctx context.Context) (string, error) {
	r, err := s.c.GetChassisStatus(ctx)
	if err != nil {
		return "", explain("get power state", err)
	}
	if r.PowerIsOn {
		return On, nil
	}
	return Off, nil
}

func (s *session) control(ctx context.Context, what chassis.ChassisControl) error {
	if _, err := s.c.ChassisControl(ctx, what); err != nil {
		return explain(map[chassis.ChassisControl]string{
			powerDown: "power down", powerUp: "power up", powerCycle: "power cycle", hardReset: "reset"}[what], err)
	}
	return nil
}

// nextBootPXE sets the boot flags (IPMI 2.0, table 28-14, parameter 5) to PXE
// for the next boot only. Whether that is a legacy or an EFI boot stays as the
// BMC has it: the wrong one sends some boxes past the network. A BMC that has
// no boot flags is let be: the box then boots by its own order.
func (s *session) nextBootPXE(ctx context.Context) error {
	var now types.BootOptionParam_BootFlags
	if err := s.c.GetSystemBootOptionsParamFor(ctx, &now); err != nil {
		if err := explain("get boot flags", err); errors.Is(err, ErrNoAnswer) {
			return err
		}
		s.log.Debug("BMC does not tell its boot flags", "error", err)
	}
	err := s.c.SetBootDevice(ctx, types.BootDeviceSelectorForcePXE, now.BIOSBootType, false)
	if err == nil {
		return nil
	}
	if err := explain("set next boot to PXE", err); !errors.Is(err, ErrRefused) {
		return err
	}
	s.log.Warn("BMC does not set the next boot to PXE; the box must have the network first in its boot order", "error", err)
	return nil
}
