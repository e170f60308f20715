package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"filippo.io/age"

	"dsas"
)

type backupCmd struct {
	configFlags
	Images         bool     `help:"Put the current images in too, so that nothing has to be built after a restore."`
	Recipient      []string `help:"Encrypt to this age public key; give it again for more." placeholder:"age1..."`
	PassphraseFile string   `help:"Encrypt with the passphrase in this file." placeholder:"FILE"`
	File           string   `arg:"" help:"File to write; it is replaced when the new one is whole."`
}

// Help gives the examples.
func (*backupCmd) Help() string {
	return `Copies the server's state into one file, also while the server runs: the
database as it is at one moment, the key that opens its secrets, the keys that
sign releases, certificate, configuration and your own roles, the kernel that was
asked for, and which images are current. As root, on the server itself.

WHOEVER HAS THE FILE HAS EVERY SECRET: it has the key in it, without which the
database would be of no use as a backup. It is made with mode 0600; encrypt it
(age, age-encryption.org) before it leaves the machine:

  dsas backup /srv/backup/dsas.tar.zst
  dsas backup --recipient age1... --images /srv/backup/dsas.tar.zst.age

Every night, with a name for each day of the month (/etc/cron.d/dsas-backup):

  15 3 * * * root dsas backup --recipient age1... /srv/backup/dsas-$(date +\%d).age`
}

// Run implements the command.
func (c *backupCmd) Run(ctx context.Context, a *app) error {
	if c.File == "" {
		return usagef("the file's name is empty; name the file to write")
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	var to []age.Recipient
	for _, r := range c.Recipient {
		x, err := age.ParseX25519Recipient(r)
		if err != nil {
			return usagef("--recipient %q: %w; age-keygen makes a pair", r, err)
		}
		to = append(to, x)
	}
	if c.PassphraseFile != "" {
		if len(to) > 0 {
			return usagef("--passphrase-file and --recipient: give one of them")
		}
		pass, err := a.passphrase(c.PassphraseFile)
		if err != nil {
			return err
		}
		x, err := age.NewScryptRecipient(pass)
		if err != nil {
			return fmt.Errorf("passphrase: %w", err)
		}
		to = append(to, x)
	}
	begin := time.Now()
	out, err := makeBackup(ctx, backupRequest{
		Config: cfg, ConfigPath: c.Config, File: c.File, Images: c.Images, Recipients: to,
		Warn: func(line string) { fmt.Fprintln(a.stderr, "dsas:", line) },
	})
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(out)
	}
	a.printf("%s: %s of state", c.File, size(out.Total()))
	if out.WithImages {
		a.printf(" and images")
	}
	a.printf(", %s, in %s\n", dsas.Count(len(out.Files), "file"), time.Since(begin).Round(time.Millisecond))
	if len(to) == 0 {
		a.printf("It holds the key to every secret: keep it as you keep root's password.\n")
	}
	return nil
}

// passphrase reads a passphrase's file: its first line.
func (a *app) passphrase(path string) (string, error) {
	b, err := a.readFile(path, maxTokenFile)
	if err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	if len(line) == 0 {
		return "", usagef("passphrase file %s: its first line is empty", path)
	}
	return string(line), nil
}

type restoreCmd struct {
	configFlags
	DryRun         bool   `help:"Check the backup and show what would be done."`
	Force          bool   `help:"Replace state and configuration that are there; they are kept aside."`
	NoConfig       bool   `help:"Leave configuration and roles as they are: restore the state alone."`
	Finish         bool   `help:"Carry an interrupted restore to its end."`
	Identity       string `help:"File with the age identity that opens the backup." placeholder:"FILE"`
	PassphraseFile string `help:"File with the passphrase that opens the backup." placeholder:"FILE"`
	File           string `arg:"" optional:"" help:"Backup to restore."`
}

// Help gives the examples.
func (*restoreCmd) Help() string {
	return `Puts the state of a backup in its place. The server must not run. The backup is
checked first: every digest, the database, whether this program knows its
version, and that the key is the one that opens it. What is there already is
replaced with --force alone, and kept in a folder below the state folder.

  systemctl stop dsas
  dsas restore --dry-run /srv/backup/dsas.tar.zst
  dsas restore --force /srv/backup/dsas.tar.zst
  systemctl start dsas

An interrupted restore has changed nothing, or says that it has to be finished
(--finish). Nodes that run do not notice any of it. Images that are not in the
backup have to be built: dsas image build NAME...`
}

// Run implements the command.
func (c *restoreCmd) Run(ctx context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		// What stands there may be what is to be replaced.
		if !c.Force && !c.Finish && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w; to restore over it, give --force", err)
		}
		cfg = config{}
		override(&cfg.State, c.State)
		override(&cfg.Roles, c.Roles)
		override(&cfg.Keys, c.Keys)
		cfg.setDefaults()
	}
	if c.Finish == (c.File != "") {
		return usagef("give the backup's file, or --finish after an interrupted restore")
	}
	req := restoreRequest{
		Config: cfg, ConfigPath: c.Config, File: c.File, DryRun: c.DryRun, Force: c.Force, NoConfig: c.NoConfig, Identities: c.identities(a),
	}
	if c.Finish {
		aside, err := finishRestore(cfg)
		if err != nil {
			return err
		}
		if a.JSON {
			return a.writeJSON(restored{Aside: aside})
		}
		a.printf("finished; what was there is in %s\n", aside)
		return nil
	}
	out, err := restoreBackup(ctx, req)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(out)
	}
	out.print(a, c.DryRun)
	return nil
}
