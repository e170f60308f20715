// Package roles parses and checks role definitions and renders what is one
// node's own: /etc/dsas.conf and the files made from a role's templates.
//
// A definition is a folder: role.yaml, files/ (overlay), services/NAME/run
// (and log/run, finish, check), templates/, and dsas.conf, a template whose
// text is added to the node's dsas.conf. The shipped ones are embedded in the
// program; a user's own live in a folder and add to them or, by the same name,
// take their place. The folder _common is no role: it lies under every role.
package roles
