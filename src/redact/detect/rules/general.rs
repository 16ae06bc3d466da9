//! What belongs to no provider: keys, tokens and passwords by where they stand.
#![forbid(unsafe_code)]

use super::{Coded, Rule, coded, labelled, pattern};

pub(super) const RULES: &[Rule] = &[
    coded(
        "private-key",
        "private keys: PEM, OpenSSH, PGP and PuTTY",
        Coded::PrivateKey,
        &[
            "-----BEGIN RSA PRIVATE KEY-----\n<b64>\n<b64>\n<b20>==\n-----END RSA PRIVATE KEY-----\n",
            "\"private_key\": \"-----BEGIN PRIVATE KEY-----\\n<b64>\\n<b64>\\n-----END PRIVATE KEY-----\\n\",",
            "  -----BEGIN OPENSSH PRIVATE KEY-----\n  <b70>\n  <b70>\n  <b12>\n  -----END OPENSSH PRIVATE KEY-----",
            "KEY='-----BEGIN EC PRIVATE KEY----- <b64> <b64> <b20>== -----END EC PRIVATE KEY-----'",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,<h32>\n\n<b64>\n<b64>\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2\n\n<b64>\n<b64>\n=<b4>\n-----END PGP PRIVATE KEY BLOCK-----",
            "> -----BEGIN PRIVATE KEY-----\n> <b64>\n> <b64>\n> -----END PRIVATE KEY-----",
            "12:00:01 INFO a: -----BEGIN PRIVATE KEY-----\n12:00:01 INFO a: <b64>\n12:00:01 INFO a: <b64>\n12:00:01 INFO a: -----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\n<b64>\n<b64>\nand nothing after it",
            "PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 2\n<b64>\n<b64>\nPrivate-MAC: x",
        ],
        &[
            "if text.contains(\"-----BEGIN RSA PRIVATE KEY-----\") {",
            "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
            "-----BEGIN PUBLIC KEY-----\n<b64>\n<b64>\n-----END PUBLIC KEY-----",
            "-----BEGIN CERTIFICATE-----\n<b64>\n<b64>\n-----END CERTIFICATE-----",
            "put it between -----BEGIN PRIVATE KEY----- and the end",
        ],
    ),
    coded(
        "jwt",
        "JSON web tokens, signed, encrypted or neither",
        Coded::Jwt,
        &[
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOi<u30>.<u43>",
            "token=eyJhbGciOiJSUzI1NiIsImtpZCI6<u20>.eyJpc3Mi<u40>.<u86>",
            "eyJhbGciOiJub25lIn0.eyJzdWIi<u30>.",
        ],
        &["eyJhbGciOiJIUzI1NiJ9", "eyJub3QiOiJ0b2tlbiJ9.png", "heyJude.likesMusicAlot"],
    ),
    coded(
        "url-password",
        "the password in scheme://user:PASSWORD@host",
        Coded::UrlPassword,
        &[
            "DATABASE_URL=postgres://app:<a16>@db.internal:5432/prod",
            "redis://:<a12>@cache:6379/0",
            "mongodb+srv://u:<u14>@h1.net,h2.net/x",
            "amqp://u:<a5>p@ss<a5>@mq/",
            "\"https://bob:<a12>%40<a5>@host/path\"",
        ],
        &[
            "http://localhost:8080/path",
            "https://example.org:443/a@b",
            "postgres://app:${DB_PASSWORD}@db/prod",
            "postgres://user:password@localhost/db",
            "ssh://git@github.com:22/o/r",
            "https://user:<password>@host",
            "http://a:1,http://b:2 mail me@x.org",
        ],
    ),
    coded(
        "basic-auth",
        "user and password of HTTP basic authentication",
        Coded::Basic,
        &["Authorization: Basic dXNlcjpw<b24>=", "-H 'authorization: basic YWRtaW46<b20>=='"],
        &[
            "Basic authentication-is-not-supported",
            "Authorization: Basic <base64>",
            "BASIC internationalization",
        ],
    ),
    coded(
        "bearer-token",
        "tokens after Bearer",
        Coded::Bearer,
        &[
            "Authorization: Bearer <a40>",
            "curl -H \"Authorization: Bearer <u24>\"",
            "{\"authorization\":\"Bearer <a20>.<a20>\"}",
        ],
        &[
            "Authorization: Bearer $TOKEN_FROM_VAULT_2",
            "Bearer authentication-required",
            "Authorization: Bearer YOUR_ACCESS_TOKEN",
        ],
    ),
    coded(
        "auth-header",
        "values of headers that carry a secret alone",
        Coded::Header,
        &[
            "X-Api-Key: <a32>",
            "\"x-access-token\": \"<a24>\"",
            "Authorization: <a40>",
            "Authorization: token <h40>",
        ],
        &["X-Api-Key: ${API_KEY}", "X-Api-Version: 2024-01-01-preview1", "Authorization: none"],
    ),
    coded(
        "url-parameter",
        "parameters of URLs that carry a secret",
        Coded::Parameter,
        &[
            "https://x.org/cb?state=1&access_token=<a32>&b=2",
            "GET /v1?api_key=<h32> HTTP/1.1",
            "https://a.blob.core.windows.net/c?sv=2024-01-01&se=2026&sig=<a43>%3D",
            "https://s3/x?X-Amz-Signature=<h64>",
        ],
        &[
            "https://x.org/?page_token=<a32>",
            "https://x.org/?token=none",
            "https://x.org/?q=secret-recipes-for-2024",
            "https://x.org/?key=your_api_key_goes_here",
        ],
    ),
    pattern(
        "der-private-key",
        "private keys in base64 without armour (PKCS 1, PKCS 8, SEC 1)",
        &[
            "MIIEvQIBADANBgkqhkiG9w0BAQEF[A-Za-z0-9+/=]{64,}",
            "MIIEvAIBADANBgkqhkiG9w0BAQEF[A-Za-z0-9+/=]{64,}",
            "MIIEvgIBADANBgkqhkiG9w0BAQEF[A-Za-z0-9+/=]{64,}",
            "MIIJQgIBADANBgkqhkiG9w0BAQEF[A-Za-z0-9+/=]{64,}",
            "MIIEpAIBAAKCAQEA[A-Za-z0-9+/=]{64,}",
            "MIIEowIBAAKCAQEA[A-Za-z0-9+/=]{64,}",
            "MIIEogIBAAKCAQEA[A-Za-z0-9+/=]{64,}",
            "MIGHAgEAMBMGByqGSM49[A-Za-z0-9+/=]{64,}",
            "MC4CAQAwBQYDK2VwBCIEI[A-Za-z0-9+/=]{42,}",
        ],
        &["KEY=MIIEvQIBADANBgkqhkiG9w0BAQEF<b200>", "MC4CAQAwBQYDK2VwBCIEI<b43>"],
        &["MIIBIjANBgkqhkiG9w0BAQEF<b200>", "MIIEpAIBAAKCAQEA"],
    ),
    pattern(
        "url-with-token",
        "tokens in the user's place of a git URL",
        &[
            "x-access-token:[A-Za-z0-9_.-]{20,}",
            "oauth2:[A-Za-z0-9_.-]{20,}",
            "x-token-auth:[A-Za-z0-9_.=-]{20,}",
        ],
        &["https://x-access-token:<a40>@github.com/o/r"],
        &["x-access-token:$TOKEN"],
    ),
    labelled(
        "auth-token",
        "values of names like _authToken in an .npmrc",
        (&["auth_token", "authtoken"], &["[A-Za-z0-9+/=_.-]{20,}"]),
        &["//npm.corp/:_authToken=<a40>", "X-Auth-Token: <h32>"],
        &[
            "//npm.corp/:_authToken=${NPM_TOKEN}",
            "_authToken=your-token-goes-right-here",
            "authToken: getAuthTokenFromLocalStorage",
        ],
    ),
];
