//! Which headers and query parameters are a client's own credentials, and taking them off.
//!
//! The names are those that the services' own API documentation gives. A credential under a name of its own, in
//! the path or in the body, is not seen: the rule's allowed host and paths are what bounds it.

use http::{HeaderMap, HeaderName, Uri};
use percent_encoding::percent_decode_str;

use super::{Error, retarget};

/// Lower case, sorted. RFC 9110 and 6265, then by service: AWS, Azure, Google, GitLab, HashiCorp, Shopify, Datadog,
/// New Relic, Honeycomb, Cloudflare, Postmark, RapidAPI, Algolia and others.
const HEADERS: &[&str] = &[
    "api-key",
    "api-token",
    "apikey",
    "apitoken",
    "authentication",
    "authorization",
    "cf-access-client-id",
    "cf-access-client-secret",
    "cf-access-jwt-assertion",
    "cf-access-token",
    "circle-token",
    "cookie",
    "cookie2",
    "dd-api-key",
    "dd-application-key",
    "deploy-token",
    "dpop",
    "fastly-key",
    "job-token",
    "linode-token",
    "ocp-apim-subscription-key",
    "private-token",
    "proxy-authorization",
    "x-access-token",
    "x-algolia-api-key",
    "x-amz-security-token",
    "x-api-key",
    "x-api-secret",
    "x-api-token",
    "x-apikey",
    "x-app-key",
    "x-auth",
    "x-auth-email",
    "x-auth-key",
    "x-auth-token",
    "x-authorization",
    "x-aws-ec2-metadata-token",
    "x-client-secret",
    "x-cmc_pro_api_key",
    "x-consul-token",
    "x-figma-token",
    "x-finnhub-token",
    "x-forwarded-access-token",
    "x-functions-key",
    "x-github-token",
    "x-gitlab-token",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-goog-iap-jwt-assertion",
    "x-honeycomb-team",
    "x-insert-key",
    "x-jwt-assertion",
    "x-license-key",
    "x-mbx-apikey",
    "x-ms-authorization-auxiliary",
    "x-nomad-token",
    "x-plex-token",
    "x-postmark-account-token",
    "x-postmark-server-token",
    "x-query-key",
    "x-rapidapi-key",
    "x-secret-key",
    "x-sentry-auth",
    "x-service-token",
    "x-shopify-access-token",
    "x-shopify-storefront-access-token",
    "x-subscription-token",
    "x-token",
    "x-trackertoken",
    "x-typesense-api-key",
    "x-user-token",
    "x-vault-token",
    "xi-api-key",
];

/// Lower case, sorted. OAuth 2 (RFC 6750 section 2.3), API keys, AWS signature 2, Azure SAS and Google signed URLs.
const PARAMETERS: &[&str] = &[
    "access_key",
    "access_token",
    "accesskey",
    "accesstoken",
    "api-key",
    "api_key",
    "api_secret",
    "api_token",
    "apikey",
    "apitoken",
    "app_key",
    "appid_secret",
    "auth",
    "auth_key",
    "auth_token",
    "authkey",
    "authorization",
    "authtoken",
    "awsaccesskeyid",
    "bearer_token",
    "client_assertion",
    "client_secret",
    "googleaccessid",
    "id_token",
    "jwt",
    "key",
    "oauth_signature",
    "oauth_token",
    "password",
    "private_token",
    "refresh_token",
    "secret",
    "security_token",
    "sig",
    "signature",
    "subscription-key",
    "token",
];

/// Presigned parameters: AWS signature 4 and Google's.
const PARAMETER_PREFIXES: &[&str] = &["x-amz-", "x-goog-"];

/// Whether a header (or trailer) is a client's own credential.
#[must_use]
pub fn is_client_credential(name: &HeaderName) -> bool {
    HEADERS.binary_search(&name.as_str()).is_ok()
}

pub(super) fn headers(headers: &mut HeaderMap) {
    let found: Vec<HeaderName> = headers.keys().filter(|name| is_client_credential(name)).cloned().collect();
    if found.is_empty() {
        return;
    }
    // `HeaderMap::remove` moves the last entry into the gap; the others' order is kept by building anew.
    let mut last = None;
    let mut kept = HeaderMap::with_capacity(headers.keys_len());
    for (name, value) in std::mem::take(headers) {
        last = name.or(last);
        if let Some(name) = &last
            && !found.contains(name)
        {
            kept.append(name.clone(), value);
        }
    }
    *headers = kept;
}

pub(super) fn query(uri: &mut Uri) -> Result<(), Error> {
    without(uri, |key| {
        PARAMETERS.binary_search(&key).is_ok() || PARAMETER_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
    })
}

/// Takes off one parameter, whatever its letter case.
pub(super) fn parameter(uri: &mut Uri, name: &str) -> Result<(), Error> {
    let name = name.to_ascii_lowercase();
    without(uri, |key| key == name)
}

/// Takes off the parameters whose key, decoded and in lower case, `is_one`. Servers differ on whether `;` separates
/// as `&` does (WHATWG URL against HTML 4.01 appendix B.2.2): here both do. The others' bytes stay as they are.
fn without(uri: &mut Uri, is_one: impl Fn(&str) -> bool) -> Result<(), Error> {
    let Some(query) = uri.query() else {
        return Ok(());
    };
    let goes = |piece: &str| {
        let key = piece.trim_end_matches(['&', ';']).split('=').next().unwrap_or_default();
        let key = key.replace('+', " ");
        let key = percent_decode_str(&key).decode_utf8_lossy().trim().to_ascii_lowercase();
        // PHP and Rack read `key[]` and `key[a]` as `key` too.
        is_one(&key) || key.split_once('[').is_some_and(|(key, _)| is_one(key))
    };
    if !query.split_inclusive(['&', ';']).any(goes) {
        return Ok(());
    }
    let kept: String = query.split_inclusive(['&', ';']).filter(|piece| !goes(piece)).collect();
    // A piece carries the separator after it: one left at the end belonged to a piece that is gone.
    let kept = if query.ends_with(['&', ';']) { kept.as_str() } else { kept.trim_end_matches(['&', ';']) };
    let mut target = uri.path().to_owned();
    if !kept.is_empty() {
        target.push('?');
        target.push_str(kept);
    }
    retarget(uri, target.as_bytes())
}

#[cfg(test)]
mod tests;
