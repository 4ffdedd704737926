//! Which headers and query parameters are a client's own credentials, and taking them off.
//!
//! The names are those that the services' own API documentation gives. A credential under a name of its own, in
//! the path or in the body, is not seen: the rule's allowed host and paths are what bounds it.

use super::{Error, retarget};
use crate::http::query;
use crate::policy::spelling;
use http::{HeaderMap, HeaderName, Uri};

/// As [`spelling::header`] has them, sorted. RFC 9110 and 6265, then by service: AWS, Azure, Google, GitLab, HashiCorp, Shopify, Datadog,
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
    "x-cmc-pro-api-key",
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

/// As [`spelling::parameter`] has them, sorted. OAuth 2 (RFC 6750 section 2.3), API keys, AWS signature 2, Azure SAS and
/// Google signed URLs.
const PARAMETERS: &[&str] = &[
    "$key",
    "access_key",
    "access_token",
    "accesskey",
    "accesstoken",
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
    "subscription_key",
    "token",
];

/// Presigned parameters: AWS signature 4 and Google's.
const PARAMETER_PREFIXES: &[&str] = &["x_amz_", "x_goog_"];

/// Whether a header (or trailer) is a client's own credential, in any spelling.
#[must_use]
pub fn is_client_credential(name: &HeaderName) -> bool {
    HEADERS.binary_search(&&*spelling::header(name.as_str())).is_ok()
}

pub(super) fn headers(headers: &mut HeaderMap) {
    let ours = headers.keys().filter(|name| is_client_credential(name));
    let found = ours.cloned().collect();
    remove(headers, found);
}

fn remove(headers: &mut HeaderMap, found: Vec<HeaderName>) {
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
    let is_one = |key: &str| {
        PARAMETERS.binary_search(&key).is_ok()
            || PARAMETER_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
    };
    without(uri, |raw| spelling::is_any(raw, is_one))
}

/// Takes off one parameter, in every spelling.
pub(super) fn parameter(uri: &mut Uri, name: &str) -> Result<(), Error> {
    let name = spelling::parameter(name);
    without(uri, |raw| spelling::may_be(raw, &name))
}

/// Takes off what a server may take for this header.
pub(super) fn header(headers: &mut HeaderMap, name: &HeaderName) {
    let is_twin = |other: &&HeaderName| spelling::is_one_header(name.as_str(), other.as_str());
    let found = headers.keys().filter(is_twin).cloned().collect();
    remove(headers, found);
}

fn without(uri: &mut Uri, is_one: impl Fn(&str) -> bool) -> Result<(), Error> {
    let Some(kept) = uri.query().and_then(|query| query::without(query, is_one)) else {
        return Ok(());
    };
    let mut target = uri.path().to_owned();
    if !kept.is_empty() {
        target.push('?');
        target.push_str(&kept);
    }
    retarget(uri, target.as_bytes())
}

#[cfg(test)]
mod tests;
